"""Jobs at the default path, and mounted in the application's resource tree."""

from __future__ import annotations

from typing import Any

from webtest import TestApp

from pyramid_jobstate import JobStore
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.operating import (
    OPERATOR,
    Marathons,
    act,
    operated_root,
    put,
    statuses,
    uuids_of,
)
from tests.web.paging import Visit, browse, put_batch
from tests.webapp import PLACES, ask, get, make_config


def test_everything_is_the_same_at_each_place(
    paged: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """Wherever jobs are mounted, each request does the same, and URLs stay there."""
    for place in PLACES:
        store.client.flushdb()
        job, other, bobs = put(store, "alice", "alice", "bob", cls=RunMarathon)
        url = f"http://localhost{place}/{job}/"
        state = get(paged, f"{place}/{job}", "alice").json
        assert state["job"]["url"] == url
        for path in place, f"{place}/", f"{place}?kind=RunMarathon":
            items = get(paged, path, "alice").json["items"]
            assert uuids_of(items) == [other, job] and items[1] == state
        several = get(paged, f"{place}?uuid={job}&uuid={bobs}", "alice").json
        assert several == {"jobs": {job: state, bobs: None}}
        assert len(get(paged, f"{place}?all=1", OPERATOR).json["items"]) == 3
        fresh = {"Cache-Control": "no-cache"}
        counts = get(paged, f"{place}/counts", OPERATOR, **fresh).json["counts"]
        assert counts["working"] == 3
        assert get(paged, f"{place}/{job}/inspect", OPERATOR).json["uuid"] == job

        cancelled = act(paged, f"{place}/{job}/cancel", "alice")
        assert (cancelled.status_code, cancelled.json["job"]["url"]) == (202, url)
        assert act(paged, f"{place}/cancel", owner="bob").json["done"] == 1
        ended = put(store, *["bob"] * 3, cls=RunMarathon, status="error")
        assert act(paged, f"{place}/{ended[2]}/rerun").status_code == 202
        assert act(paged, f"{place}/rerun", owner="bob", limit=1).json["done"] == 1
        (failed,) = (u for u in ended if statuses(store, u) == ["error"])
        assert act(paged, f"{place}/{failed}", method="DELETE").status_code == 204
        put(store, "bob", status="success")
        assert act(paged, f"{place}/clear", owner="bob").json["done"] == 1


def test_refusals_are_the_same_at_each_place(paged: TestApp, store: JobStore) -> None:
    """Wherever jobs are mounted, the same is refused, and a browser gets a page."""
    (job,) = put(store, "alice", cls=RunMarathon)
    for place in PLACES:
        for method, end, user, code in (
            ("GET", f"/{job}", "bob", 403),
            ("GET", "?all=1", "alice", 403),
            ("GET", "/counts", "alice", 403),
            ("GET", f"/{job}/inspect", "alice", 403),
            ("POST", f"/{job}/stack", "alice", 403),
            ("POST", f"/{job}/cancel", "bob", 403),
            ("DELETE", f"/{job}", "alice", 403),
            ("POST", "/clear?all=1&everything=1", "alice", 403),
            ("POST", "/cancel?owner=alice", "bob", 403),
            ("GET", "?limit=0", OPERATOR, 400),
            ("POST", "/clear", OPERATOR, 400),
            ("GET", f"/{UUID}", OPERATOR, 404),
            ("GET", "/counts/x", OPERATOR, 404),
            ("PUT", f"/{job}", OPERATOR, 405),
            ("GET", "/clear", OPERATOR, 405),
        ):
            response = act(paged, place + end, user, method)
            assert response.status_code == code, (place, method, end, user)
            assert [*response.json] == ["error"], (place, method, end, user)
        page = browse(paged, f"{place}/{job}", "bob")
        assert (page.status_code, page.content_type) == (403, "text/html"), place
        for end in f"/{job}/cancel", "/clear?everything=1&all=1":
            assert ask(paged, "POST", place + end, OPERATOR).status_code == 400
    assert statuses(store, job) == ["working"]


def test_pages_lead_to_their_place(paged: TestApp, store: JobStore) -> None:
    """Pages lead to each other, and their scripts post, where jobs are mounted."""
    batch, (member,) = put_batch(store, "error")
    for place in PLACES:
        base = f"http://localhost{place}/"
        assert browse(paged, place).location == f"{base}?all=1"
        of_batch = browse(paged, f"{place}/?batch={batch}&limit=1")
        assert of_batch.location == f"{base}{batch}/?limit=1"
        ends = "/?all=1", f"/{batch}", f"/{member}"
        pages = listed, page, of_member = [Visit(paged, place + end) for end in ends]
        urls: list[Any] = [listed.data["first"], page.data["url"], page.data["list"]]
        for visit in pages:
            urls += [tag["src"] for tag in visit.all("job-state")]
            urls += [tag["href"] for tag in visit.all(".jobstate a")]
            urls += [each["url"] for each in visit.data.get("bulk", {}).values()]
        assert len(urls) > 25
        assert [url for url in urls if not url.startswith(base)] == []
        assert of_member.link("Import of the files") == f"{base}{batch}/"


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
