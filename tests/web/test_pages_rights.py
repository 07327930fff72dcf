"""What a page has for its viewer alone, and where it leads."""

from __future__ import annotations

from typing import Any

import pytest
from webtest import TestApp

from pyramid_jobstate import JobStore
from tests.jobs import RunMarathon
from tests.web.operating import LockedDiary, operated_root, put
from tests.web.paging import Visit, browse, paged_app
from tests.web.test_rights import USERS, Roles
from tests.webapp import make_config


@pytest.fixture
def roles(redis_url: str) -> TestApp:
    """An application with pages and the users of the table of rights."""
    return paged_app(redis_url, root_factory=Roles)


def test_page_of_a_job_offers_what_its_viewer_may_do(
    roles: TestApp, store: JobStore
) -> None:
    """Each of its acts needs its own right, beside that to see the page."""
    for status, acts in ("working", ["cancel"]), ("error", ["rerun", "delete"]):
        (job,) = put(store, "alice", cls=RunMarathon, status=status)
        for user, rights in USERS.items():
            may = [act for act in acts if f"{act}_job" in rights]
            if "view_job" in rights:
                assert Visit(roles, f"/job_state/{job}", user).acts == may, user
            else:
                assert browse(roles, f"/job_state/{job}", user).status_code == 403


def test_list_tells_nothing_of_others(roles: TestApp, store: JobStore) -> None:
    """Without list_jobs, a list neither counts nor names others' jobs, even visible
    ones.
    """
    (job,) = put(store, "alice", cls=RunMarathon)
    for user, rights in USERS.items():
        if "list_jobs" in rights:
            continue
        for query in "", "?kind=RunMarathon":
            page = Visit(roles, f"/job_state{query}", user)
            assert page.path == f"/job_state{query}"
            assert page.uuids == [job] * (user == "alice")
            assert page.texts("h1") == ["Your jobs"]
            others = ".jobstate-count, .jobstate-chart, select, input[name=owner]"
            assert not page.has(others), user


def test_beginning_of_an_id_tells_nothing_of_others(
    roles: TestApp, store: JobStore
) -> None:
    """The page neither leads to a job that the viewer may not see nor reveals that one
    exists: neither another user's job, nor one of their own that its class hides.
    """
    (hidden,) = put(store, "alice", cls=RunMarathon, status="error")
    (locked,) = put(store, "bob", cls=LockedDiary)
    for user, job, query in (
        ("lister", hidden, "all=1"),
        ("lister", hidden, "owner=alice&status=error&kind=RunMarathon"),
        ("bob", locked, ""),
    ):
        pages = [
            browse(roles, f"/job_state?id={begins}&{query}".rstrip("&"), user)
            for begins in (job[:8], "00000000")
        ]
        assert [page.status_code for page in pages] == [200, 200], user
        told, unknown = (page.text for page in pages)
        assert told.replace(job[:8], "00000000") == unknown
    assert browse(roles, f"/job_state?all=1&id={hidden[:8]}").status_code == 302


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

        below = f"/team/{path}"
        page, one = (Visit(TestApp(serve), f"{below}/{e}") for e in ("?all=1", job))
        urls = [one.data["url"], one.data["list"], page.data["first"]]
        urls += [each["url"] for each in page.data["bulk"].values()]
        for name in "href", "src", "action", "data-styles":
            urls += [tag[name] for v in (page, one) for tag in v.all(f"[{name}]")]
        assert len(urls) > 20
        for url in urls:
            assert url.startswith(f"http://localhost{mount}{below}/"), url
