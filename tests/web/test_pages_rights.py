"""A page shows its viewer what its JSON would, and its script gets what acts need."""

from __future__ import annotations

from typing import Any

import pytest
from pyramid.authorization import Allow
from pyramid.csrf import CookieCSRFStoragePolicy
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.web.operating import (
    OPERATOR,
    LockedDiary,
    OperatedRoot,
    operated_root,
    put,
)
from tests.web.paging import Visit, browse, paged_app, paged_config
from tests.webapp import get, make_app, make_config

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


def test_rights_on_the_page_of_a_job(
    roles: TestApp, rowing: str, store: JobStore
) -> None:
    """Each viewer reads what they may, and is offered what they may do."""
    path = f"/job_state/{rowing}"
    running = put_job(store, Rowing, owner=OWNER, message=MESSAGE).uuid
    public = {PARAM, METRIC}
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
        # Once a job has failed, its page shows no message.
        response = browse(roles, f"/job_state/{running}", user)
        assert (MESSAGE in response.text) is (status == 200), user


def test_list_tells_nothing_of_others(roles: TestApp, rowing: str) -> None:
    """Without list_jobs, a list tells nothing of others' jobs, even visible ones."""
    others = ".jobstate-count, .jobstate-chart, select, input[name=owner]"
    for user in None, "bob", VIEWER, INSPECTOR:
        page = Visit(roles, "/job_state", user)
        assert page.path == "/job_state"
        assert page.uuids == []
        for word in rowing, TITLE, PARAM, OWNER, *SECRETS:
            assert word not in page.response.text, (user, word)
        assert not page.has(others)
        assert page.texts("h1") == ["Your jobs"]
        assert browse(roles, "/job_state?all=1", user).status_code == 403
        of_a_kind = Visit(roles, "/job_state?kind=Rowing", user)
        assert (of_a_kind.uuids, of_a_kind.has(".jobstate-count")) == ([], False)
    page = Visit(roles, "/job_state", "alice")
    assert page.uuids == [rowing]
    assert not page.has(others)
    assert page.acts == []


def test_beginning_of_an_id_tells_nothing_of_others(
    roles: TestApp, rowing: str, store: JobStore
) -> None:
    """The page neither leads to a job that the viewer may not see nor reveals that one
    exists: neither another user's job, nor one of their own that its class hides.
    """
    (locked,) = put(store, "bob", cls=LockedDiary)
    for user, job, query in (
        (LISTER, rowing, "all=1"),
        (LISTER, rowing, "owner=alice&status=error&kind=Rowing"),
        ("bob", locked, ""),
    ):
        pages = [
            browse(roles, f"/job_state?id={begins}&{query}".rstrip("&"), user)
            for begins in (job[:8], "00000000")
        ]
        assert [page.status_code for page in pages] == [200, 200], user
        told, unknown = (page.text for page in pages)
        assert told.replace(job[:8], "00000000") == unknown
    assert browse(roles, f"/job_state?all=1&id={rowing[:8]}").status_code == 302


def test_page_has_what_the_csrf_check_wants(redis_url: str, store: JobStore) -> None:
    """The script is told the token and where it goes, without which no act passes."""
    cases: list[tuple[dict[str, Any], str | None, str]] = [
        ({}, "X-CSRF-Token", "csrf_token"),
        ({"header": "X-Own", "token": "own"}, "X-Own", "own"),
        ({"header": None, "token": "own"}, None, "own"),
    ]
    for options, header, field in cases:
        config = paged_config(redis_url)
        config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
        config.set_default_csrf_options(**options)
        app = make_app(config)
        (job,) = put(store, "alice", status="success")
        path = f"/job_state/{job}"
        headers = {"X-User": OPERATOR, "X-Requested-With": "x"}
        csrf = Visit(app, path).data["csrf"]
        assert (csrf["header"], csrf["field"]) == (header, field)
        refused = app.request(path, method="DELETE", headers=headers, status=400)
        assert "CSRF" in refused.text
        if header is not None:
            headers[header], body = csrf["token"], b""
        else:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = f"{field}={csrf['token']}".encode()
        app.request(path, method="DELETE", headers=headers, body=body, status=204)
    # An application that checks no tokens needs none.
    assert Visit(paged_app(redis_url), "/job_state").data["csrf"] is None


def test_pages_below_a_prefix(redis_url: str, store: JobStore) -> None:
    """All URLs of pages are below the prefix, whichever package is included first."""
    (job,) = put(store, "alice", status="error")
    for is_first, path, mount in (True, "job_state", ""), (False, "jobs", "/shop"):
        settings = {"jobstate.path": path}
        config = make_config(redis_url, settings=settings, root_factory=operated_root)
        if is_first:
            config.include("pyramid_jobstate.pages")
        config.include("pyramid_jobstate", route_prefix="team")
        if not is_first:
            config.include("pyramid_jobstate.pages")
        router = config.make_wsgi_app()

        def serve(env: Any, start: Any, app: Any = router, at: str = mount) -> Any:
            return app({**env, "SCRIPT_NAME": at}, start)

        app, below = TestApp(serve), f"/team/{path}"
        page, one = Visit(app, f"{below}/?all=1"), Visit(app, f"{below}/{job}")
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
            assert url.startswith(f"http://localhost{mount}{below}/"), url
