"""Pages in the layout of an application, in whatever engine, and what can be wrong."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError

from pyramid_jobstate import JobState
from pyramid_jobstate.testing import put_job
from tests.web.paging import Visit, browse, paged_app, paged_config
from tests.webapp import NOWHERE, make_app, make_config

#: The layout of an application, for engines that escape what they insert.
LAYOUT = """<!doctype html>
<html lang="en"><head><title>{title} - Shop</title>{head}</head>
<body class="shop" data-title="{title}"><p>{request.authenticated_userid}</p>
{main}<p>{request.registry.settings["note"]}</p></body></html>
"""

#: The layout in each engine, and the add-on for it. One in Mako may turn escaping off:
#: what it is handed is markup.
LAYOUTS = {
    "jinja2": LAYOUT.replace("{", "{{").replace("}", "}}"),
    "pt": LAYOUT.replace("{", "${"),
    "mako": LAYOUT.replace("{", "${").replace("{title} -", "{title | n} -"),
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
def test_pages_appear_in_the_layout(redis_url, store, shop, engine):
    """The layout gets title, head and content as markup; a script gets the content."""
    job = put_job(store, Luge, "error", owner="alice", metrics={"m": 1}).uuid
    own = paged_app(redis_url)
    app = make_app(shop_config(redis_url, f"{shop}:templates/jobs.{engine}", engine))

    def without_times(part: Any) -> str:
        """The axis of the chart ends now."""
        for time in part.select(".jobstate-times time"):
            time.decompose()
        return str(part)

    # Two applications of a process have a layout each.
    for path, title in ("/job_state/?all=1", "Jobs"), (f"/job_state/{job}", "A & <B>"):
        page, plain = Visit(app, path), Visit(own, path)
        assert page.texts("title") == [f"{title} - Shop"]
        assert page.one("body.shop")["data-title"] == title
        assert page.texts("body > p") == ["operator", "<b>"]
        main = without_times(page.one(".jobstate"))
        assert main == without_times(plain.one(".jobstate"))
        for tag in "link", "script":
            assert list(map(str, page.all(tag))) == list(map(str, plain.all(tag)))
        assert not page.has(".jobstate-page") and plain.has(".jobstate-page")
        assert page.response.headers["Cache-Control"] == "private, no-store"
        part = browse(app, path, X_Requested_With="XMLHttpRequest")
        assert part.text.startswith("<div ")
        assert without_times(part.html.div) == main


def test_templates_can_be_overridden(redis_url, store, tmp_path):
    """An application can replace each of our templates, and the style sheet."""
    job = put_job(store, Luge).uuid
    config = paged_config(redis_url)
    own = '<p data-jobstate="page" data-words="{}" data-page="{}">Own: {{ %s }}</p>'
    for name, text in (
        ("templates/list.jinja2", own % "title"),
        ("templates/job.jinja2", own % "job.title"),
        ("templates/layout.jinja2", "<body class='own'>{{ title }}{{ main }}</body>"),
        ("static/job-state-pages.css", "body { color: teal }"),
    ):
        path = tmp_path / Path(name).name
        path.write_text(text, "utf-8")
        config.override_asset(f"pyramid_jobstate:{name}", str(path))
    app = make_app(config)
    for url, text in (f"/job_state/{job}", "A & <B>"), ("/job_state?all=1", "Jobs"):
        page = Visit(app, url)
        assert page.texts("body.own p") == [f"Own: {text}"]
    sheet = Visit(paged_app(redis_url), "/job_state").one("link[rel=stylesheet]")
    assert "teal" in app.get(str(sheet["href"])).text


def test_wrong_layout_and_no_package_stop_the_start():
    """The error names the setting of a wrong layout, or the package to include."""
    for layout, message in (
        ("templates/jobs.jinja2", "is not a template such as myapp:templates/jobs"),
        ("", "is not a template"),
        ("nowhere_4711:jobs.jinja2", "cannot be imported: No module named"),
        ("tests.web:jobs.jinja2", "does not exist"),
        ("tests.web:jobs.mako", "needs a renderer for '.mako'"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            make_app(shop_config(NOWHERE, layout, "jinja2"))
        text = f"The setting jobstate.pages_layout = {layout!r} {message}"
        assert text in str(caught.value)
    with pytest.raises(ConfigurationError, match="Include pyramid_jobstate as well"):
        paged_config(NOWHERE).make_wsgi_app()
    settings = {"jobstate.pages_layout": "nowhere_4711:jobs.jinja2"}
    make_app(make_config(NOWHERE, settings=settings))
