"""A page shows its viewer what its JSON would, and its script gets what acts need."""

from __future__ import annotations

from typing import Any

import pytest
from pyramid.authorization import Allow
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.web.operating import OPERATOR, OperatedRoot, act, operated_root, put
from tests.web.paging import Visit, browse, paged_app, paged_config
from tests.webapp import ask, get, make_app, make_config

INSPECTOR, LISTER, VIEWER = "inspector", "lister", "viewer"


class Rowing(JobState):
    """A kind of job that only its owner and operators know of."""

    public_params = ("boat",)


class ManyRoles(OperatedRoot):
    """A root with a role for each permission to read."""

    __acl__ = (
        (Allow, OPERATOR, OperatedRoot.__acl__[-2][2]),
        (Allow, INSPECTOR, ("view_job", "inspect_job")),
        (Allow, LISTER, ("list_jobs",)),
        (Allow, VIEWER, ("view_job",)),
    )


#: What a job has that somebody may read.
TITLE, PARAM, OWNER, MESSAGE, METRIC = "Rowing", "boat-8", "alice", "catch-22", "m-77"

#: What only those may read who inspect it.
SECRETS = ("cox-secret", "Capsized", "after-the-bridge")


@pytest.fixture
def roles(redis_url: str) -> TestApp:
    """An application with pages and many roles."""
    return paged_app(redis_url, root_factory=ManyRoles)


@pytest.fixture
def rowing(store: JobStore) -> str:
    """The uuid of a failed job of Alice's."""
    return put_job(
        store,
        Rowing,
        "error",
        owner=OWNER,
        params={"boat": PARAM, "cox": "cox-secret"},
        message=MESSAGE,
        metrics={"m": METRIC},
        error=JobError("boats.Capsized", "after-the-bridge"),
    ).uuid


def test_rights_on_the_page_of_a_job(roles: TestApp, rowing: str) -> None:
    """Each viewer reads what they may, and is offered what they may do."""
    path = f"/job_state/{rowing}"
    public = {PARAM, MESSAGE, METRIC}
    everything = {TITLE, *public, "Owner: alice", *SECRETS}
    cases: list[tuple[str | None, int, set[str], list[str]]] = [
        (None, 403, set(), []),
        ("bob", 403, set(), []),
        (LISTER, 403, set(), []),
        ("alice", 200, public, []),
        (VIEWER, 200, public, []),
        (INSPECTOR, 200, {*public, *SECRETS}, []),
        (OPERATOR, 200, everything - {TITLE}, ["rerun", "delete"]),
    ]
    for user, status, reads, acts in cases:
        response = browse(roles, path, user)

        assert response.status_code == status == get(roles, path, user).status_code
        text = " ".join(response.html.get_text().split())
        found = {word for word in everything if word in text or word in response.text}
        assert found - {TITLE} == reads, user
        assert (TITLE in found) is (status == 200), user
        if status == 200:
            assert Visit(roles, path, user).acts == acts, user
            inspected = get(roles, f"{path}/inspect", user).status_code
            assert (inspected == 200) is (reads >= set(SECRETS)), user


def test_list_tells_nothing_of_others(roles: TestApp, rowing: str) -> None:
    """Without list_jobs, a list has no titles, counts, kinds or owners of others' jobs,
    not even of those that the viewer may see.
    """
    others = ".jobstate-count, .jobstate-chart, select, input[name=owner]"
    for user in None, "bob", VIEWER, INSPECTOR:
        page = Visit(roles, "/job_state", user)

        assert page.path == "/job_state"
        assert page.uuids == []
        for word in rowing, TITLE, PARAM, OWNER, *SECRETS:
            assert word not in page.response.text, (user, word)
        assert not page.has(others)
        assert page.texts("h1") == ["Your jobs"]
        for query in "?all=1", "?owner=alice", "?kind=Rowing&all=1":
            assert browse(roles, f"/job_state{query}", user).status_code == 403
        of_a_kind = Visit(roles, "/job_state?kind=Rowing", user)
        assert (of_a_kind.uuids, of_a_kind.has(".jobstate-count")) == ([], False)
    page = Visit(roles, "/job_state", "alice")
    assert page.uuids == [rowing]
    assert not page.has(others)
    assert page.acts == []
    for secret in SECRETS:
        assert secret not in page.response.text


def test_lister_without_view_counts_jobs_and_sees_none(
    roles: TestApp, rowing: str
) -> None:
    """With list_jobs alone, a page has the counts and kinds of GET …/counts."""
    page = Visit(roles, "/job_state", LISTER)

    assert page.uuids == []
    assert "Failed 1" in page.texts(".jobstate-tabs a")
    assert page.texts("option") == ["All kinds", "Rowing"]
    for word in rowing, PARAM, OWNER, *SECRETS:
        assert word not in page.response.text


def test_permissions_are_asked_of_the_setting(redis_url: str, rowing: str) -> None:
    """Pages ask what jobstate.permits names, as everything else does."""
    asked = []

    def permits(request: Request, context: Any, permission: str) -> bool:
        asked.append(permission)
        return permission in ("view_job", "inspect_job", "delete_job")

    app = paged_app(redis_url, settings={"jobstate.permits": permits})

    page = Visit(app, f"/job_state/{rowing}", None)

    assert page.acts == ["delete"]
    assert "after-the-bridge" in page.response.text
    acts = {"inspect_job", "rerun_job", "delete_job"}
    assert set(asked) == {"view_job", "list_jobs", *acts}


def test_pages_without_operators(redis_url: str, store: JobStore) -> None:
    """An application that grants nothing itself shows owners their own jobs. Without a
    policy, pages are as closed as their JSON.
    """
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    config.include("pyramid_jobstate.pages")
    app = make_app(config)
    (job,) = put(store, "alice", cls=RunMarathon)

    assert Visit(app, "/job_state", "alice").uuids == [job]
    assert Visit(app, f"/job_state/{job}", "alice").acts == ["cancel"]
    app = paged_app(redis_url, security_policy=None)
    for path in f"/job_state/{job}", "/job_state?all=1":
        assert browse(app, path).status_code == 403
    assert Visit(app, "/job_state").uuids == []


# CSRF.


@pytest.mark.parametrize(
    ("options", "header", "field"),
    [
        ({}, "X-CSRF-Token", "csrf_token"),
        ({"header": "X-Own", "token": "own"}, "X-Own", "own"),
        ({"header": None, "token": "own"}, None, "own"),
    ],
    ids=["default", "own names", "no header"],
)
def test_page_has_what_the_csrf_check_wants(
    redis_url: str,
    store: JobStore,
    options: dict[str, Any],
    header: str | None,
    field: str,
) -> None:
    """The script is told the token, and where the application expects it: with these,
    acts pass the check, and without them they do not.
    """
    config = paged_config(redis_url)
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(**options)
    app = make_app(config)
    (job,) = put(store, "alice", status="success")

    for path in "/job_state", f"/job_state/{job}":
        csrf = Visit(app, path).data["csrf"]
        assert (csrf["header"], csrf["field"]) == (header, field)
    refused = act(app, f"/job_state/{job}", method="DELETE")
    assert (refused.status_code, "CSRF" in refused.text) == (400, True)
    if header is not None:
        sent = {header: csrf["token"], "X-Requested-With": "x"}
        response = ask(app, "DELETE", f"/job_state/{job}", OPERATOR, **sent)
    else:
        response = app.request(
            f"/job_state/{job}",
            method="DELETE",
            headers={"X-User": OPERATOR, "X-Requested-With": "x"},
            content_type="application/x-www-form-urlencoded",
            body=f"{field}={csrf['token']}".encode(),
        )
    assert response.status_code == 204


def test_page_has_no_token_if_nothing_checks_it(
    redis_url: str, store: JobStore
) -> None:
    """An application that checks no tokens needs neither sessions nor tokens."""
    (job,) = put(store, "alice")
    for checks in None, False:
        config = paged_config(redis_url)
        if checks is not None:
            config.set_default_csrf_options(require_csrf=checks)
        app = make_app(config)
        for path in "/job_state", f"/job_state/{job}":
            page = Visit(app, path)
            assert page.data["csrf"] is None
            assert "Set-Cookie" not in page.response.headers


# Below a prefix.


@pytest.mark.parametrize(
    ("prefix", "settings", "script_name", "base"),
    [
        ("team", {}, "", "/team/job_state"),
        (None, {"jobstate.path": "api/jobs"}, "", "/api/jobs"),
        ("team", {"jobstate.path": "jobs"}, "/shop", "/shop/team/jobs"),
    ],
    ids=["route_prefix", "path", "all"],
)
def test_pages_below_a_prefix(
    redis_url: str,
    store: JobStore,
    prefix: str | None,
    settings: dict[str, str],
    script_name: str,
    base: str,
) -> None:
    """All URLs of pages are where the package is included and the application mounted,
    in whichever order it includes pages.
    """
    settings = {"jobstate.redis_url": redis_url, **settings}
    (job,) = put(store, "alice", status="error")
    below = base.removeprefix(script_name)
    for is_first in True, False:
        config = make_config(None, settings=settings, root_factory=operated_root)
        if is_first:
            config.include("pyramid_jobstate.pages")
        config.include("pyramid_jobstate", route_prefix=prefix)
        if not is_first:
            config.include("pyramid_jobstate.pages")
        router = config.make_wsgi_app()

        def serve(environ: Any, start: Any, router: Any = router) -> Any:
            return router({**environ, "SCRIPT_NAME": script_name}, start)

        app = TestApp(serve)

        page = Visit(app, f"{below}/?all=1")
        one = Visit(app, f"{below}/{job}")

        urls = [
            str(tag[name])
            for found in (page, one)
            for name in ("href", "src", "action", "data-styles")
            for tag in found.all(f"[{name}]")
        ]
        urls += [one.data["url"], one.data["list"], page.data["first"]]
        urls += [each["url"] for each in page.data["bulk"].values()]
        assert len(urls) > 20
        for url in urls:
            assert url.startswith(f"http://localhost{base}/"), url
