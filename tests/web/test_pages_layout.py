"""Pages in the layout of an application, in whatever engine, and what can be wrong."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import ILocalizer
from pyramid.static import QueryStringConstantCacheBuster
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.support import ROOT
from tests.web.paging import Visit, browse, paged_app, paged_config
from tests.webapp import NOWHERE, make_app, make_config, take_steps

#: The layout of an application in each engine. Their last lines escape a text. One in
#: Mako may turn that off: what it is handed is markup.
LAYOUTS = {
    "jinja2": """<!doctype html>
<html lang="en"><head><title>{{ title }} - Shop</title>{{ head }}</head>
<body class="shop" data-title="{{ title }}"><p>{{ request.authenticated_userid }}</p>
{{ main }}<p>{{ request.registry.settings["note"] }}</p></body></html>
""",
    "pt": """<!doctype html>
<html lang="en"><head><title>${title} - Shop</title>${head}</head>
<body class="shop" data-title="${title}"><p>${request.authenticated_userid}</p>
${main}<p>${request.registry.settings["note"]}</p></body></html>
""",
    "mako": """<!doctype html>
<html lang="en"><head><title>${title | n} - Shop</title>${head}</head>
<body class="shop" data-title="${title}"><p>${request.authenticated_userid}</p>
${main}<p>${request.registry.settings["note"]}</p></body></html>
""",
}

ENGINES = {
    "jinja2": "pyramid_jinja2",
    "pt": "pyramid_chameleon",
    "mako": "pyramid_mako",
}


class Luge(JobState):
    """A kind of job whose title needs escaping."""

    title = "A & <B>"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package with a layout in each engine."""
    name = f"shop_of_{tmp_path.name.replace('-', '_')}"
    templates = tmp_path / name / "templates"
    templates.mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    for engine, text in LAYOUTS.items():
        (templates / f"jobs.{engine}").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return name


def shop_config(redis_url: str, layout: str, engine: str) -> Configurator:
    settings = {"jobstate.pages_layout": layout, "note": "<b>"}
    config = paged_config(redis_url, settings=settings)
    config.include(ENGINES[engine])
    return config


@pytest.mark.parametrize("engine", LAYOUTS)
def test_pages_appear_in_the_layout(
    redis_url: str, store: JobStore, shop: str, engine: str
) -> None:
    """The application's template surrounds the pages. Their title, head and content are
    markup there; all else is escaped as usual.
    """
    layout = f"{shop}:templates/jobs.{engine}"
    job = put_job(store, Luge, "error", owner="alice", metrics={"m": 1}).uuid
    own = paged_app(redis_url)

    app = make_app(shop_config(redis_url, layout, engine))

    # Two applications of a process have a layout each.
    for path, title in ("/job_state/?all=1", "Jobs"), (f"/job_state/{job}", "A & <B>"):
        page, plain = Visit(app, path), Visit(own, path)
        assert page.texts("title") == [f"{title} - Shop"]
        assert page.one("body.shop")["data-title"] == title
        assert page.texts("body > p") == ["operator", "<b>"]
        assert str(page.one(".jobstate")) == str(plain.one(".jobstate"))
        for tag in "link", "script":
            assert list(map(str, page.all(tag))) == list(map(str, plain.all(tag)))
        assert not page.has(".jobstate-page") and plain.has(".jobstate-page")
        assert page.response.headers["Vary"] == "Accept"
        assert page.response.headers["Cache-Control"] == "private, no-store"


def test_layout_has_the_language_of_the_page(
    redis_url: str, store: JobStore, tmp_path: Path, shop: str
) -> None:
    """A layout translates into the language of the page, whatever the request names."""
    (tmp_path / shop / "templates" / "lang.jinja2").write_text(
        "<html lang={{ request.localizer.locale_name }}>{{ main }}</html>", "utf-8"
    )
    config = shop_config(redis_url, f"{shop}:templates/lang.jinja2", "jinja2")
    app = make_app(config)

    for name in "xx", "%00", "en":
        page = Visit(app, f"/job_state?_LOCALE_={name}")
        assert page.one("html")["lang"] == page.one(".jobstate")["lang"] == "en"
    assert {n for n, _ in config.registry.getUtilitiesFor(ILocalizer)} == {"en"}


def test_script_gets_the_page_without_its_layout(
    redis_url: str, store: JobStore, shop: str
) -> None:
    """A request of a script gets the content alone. A layout may have inline styles,
    which the policy of the page that asks does not admit.
    """
    job = put_job(store, Luge, "error", owner="alice").uuid
    app = make_app(shop_config(redis_url, f"{shop}:templates/jobs.pt", "pt"))
    path = f"/job_state/{job}"

    part = browse(app, path, X_Requested_With="XMLHttpRequest")

    assert part.content_type == "text/html"
    assert part.headers["Cache-Control"] == "private, no-store"
    assert part.text.startswith("<div ")
    assert str(part.html.div) == str(Visit(app, path).one(".jobstate"))


def test_layout_may_be_set_after_the_include(
    redis_url: str, store: JobStore, shop: str
) -> None:
    """The application may set the layout, and add its renderer, when it likes."""
    config = paged_config(redis_url)
    layout = f" {shop}:templates/jobs.pt "
    config.registry.settings.update({"jobstate.pages_layout": layout, "note": ""})

    def later() -> None:
        config.include("pyramid_chameleon")

    app: TestApp = take_steps(config, "include commit later make", later=later)

    assert Visit(app, "/job_state").has("body.shop")


def test_pages_can_be_included_after_a_commit(redis_url: str) -> None:
    """Pages can be included later than the package, and again."""
    for steps in (
        "include commit pages make",
        "include commit pages commit pages make",
    ):
        config = make_config(redis_url)
        include = functools.partial(config.include, "pyramid_jobstate.pages")

        app: TestApp = take_steps(config, steps, pages=include)

        assert Visit(app, "/job_state", "alice").texts("h1") == ["Your jobs"]


def test_templates_can_be_overridden(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    """An application can replace each of our templates, and the style sheet."""
    job = put_job(store, Luge).uuid
    config = paged_config(redis_url)
    for name, text in (
        (
            "templates/job.jinja2",
            '<div data-jobstate="page" data-words="{}" data-page="{}">'
            "<h1>Own: {{ job.title }}</h1></div>",
        ),
        ("templates/layout.jinja2", "<body class='own'>{{ title }}{{ main }}</body>"),
        ("static/job-state-pages.css", "body { color: teal }"),
    ):
        path = tmp_path / Path(name).name
        path.write_text(text, "utf-8")
        config.override_asset(f"pyramid_jobstate:{name}", str(path))
    app = make_app(config)

    page = Visit(app, f"/job_state/{job}")

    assert page.texts("h1") == ["Own: A & <B>"]
    assert page.one("body")["class"] == ["own"]
    sheet = Visit(paged_app(redis_url), "/job_state").one("link[rel=stylesheet]")
    assert "teal" in app.get(str(sheet["href"])).text


def test_assets_of_a_page_are_served(redis_url: str) -> None:
    """The scripts and style sheets that a page names exist. A cache buster of the
    application applies to them.
    """
    config = paged_config(redis_url)
    buster = QueryStringConstantCacheBuster("abc")
    config.add_cache_buster("pyramid_jobstate:static/", buster)
    app = make_app(config)

    page = Visit(app, "/job_state")

    urls = [
        str(tag[name])
        for name in ("src", "data-styles")
        for tag in page.all(f"script[{name}]")
    ]
    urls.append(str(page.one("link[rel=stylesheet]")["href"]))
    assert {url.rpartition("/")[2] for url in urls} == {
        f"{name}?x=abc"
        for name in (
            "job-state.js",
            "job-state.css",
            "job-state-pages.js",
            "job-state-pages.css",
        )
    }
    for url in urls:
        assert app.get(url).status_code == 200


# What can be wrong.


def test_wrong_layout_stops_the_start() -> None:
    """A layout that cannot be rendered is an error that names the setting."""
    for layout, message in (
        ("templates/jobs.jinja2", "is not a template such as myapp:templates/jobs"),
        ("", "is not a template"),
        ("shop:", "is not a template"),
        ("a:b:c.jinja2", "is not a template"),
        ("nowhere_4711:jobs.jinja2", "cannot be imported: No module named"),
        ("tests.web:jobs.jinja2", "does not exist"),
        ("tests.web:jobs.mako", "needs a renderer for '.mako'"),
        ("tests.web:jobs", "needs a renderer for ''"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            make_app(shop_config(NOWHERE, layout, "jinja2"))

        text = f"The setting jobstate.pages_layout = {layout!r} {message}"
        assert text in str(caught.value)


def test_pages_need_the_package() -> None:
    """Pages without the package are an error that says what to include."""
    with pytest.raises(ConfigurationError, match="Include pyramid_jobstate as well"):
        paged_config(NOWHERE).make_wsgi_app()


#: Includes the package without pages, and says which modules are there that only pages
#: need. Then it includes pages where each of some packages is missing.
MISSING = """
import sys
from pyramid.config import Configurator
config = Configurator(settings={"jobstate.redis_url": "redis://127.0.0.1:1/0"})
config.include("pyramid_jobstate")
config.make_wsgi_app()
print({"jinja2", "markupsafe"} & set(sys.modules))
for name in "pyramid_jinja2", "jinja2", "markupsafe", "pyramid.csrf":
    for module in [*sys.modules]:
        if module.split(".")[0] in ("pyramid_jobstate", "pyramid_jinja2", "jinja2"):
            del sys.modules[module]
    kept = sys.modules.pop(name, None)
    sys.modules[name] = None
    try:
        Configurator().include("pyramid_jobstate.pages")
    except Exception as e:
        print(f"{type(e).__name__}: {e}")
    del sys.modules[name]
    if kept is not None:
        sys.modules[name] = kept
"""


@pytest.mark.system
def test_missing_extra_is_named() -> None:
    """An application without pages imports nothing that only they need. Without that,
    the include of pages says which extra is missing, and any other package that is
    missing is reported as it is.
    """
    command = [sys.executable, "-W", "ignore", "-c", MISSING]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)

    imported, *errors, other = done.stdout.splitlines()
    assert imported == "set()"
    for name, error in zip(
        ("pyramid_jinja2", "jinja2", "markupsafe"), errors, strict=True
    ):
        assert error == (
            f"ConfigurationError: pyramid_jobstate.pages needs the package {name}. "
            "Install pyramid_jobstate[pages]."
        )
    assert other.startswith("ModuleNotFoundError: ") and "pyramid.csrf" in other
