"""Jobs at the default path, and mounted in the application's resource tree."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from webtest import TestApp

from pyramid_jobstate import JobStore
from pyramid_jobstate.testing import put_batch
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.operating import OPERATOR, Marathons, act, put, statuses, uuids_of
from tests.web.paging import Visit, browse
from tests.webapp import PLACES, ask, get


def test_everything_is_the_same_at_each_place(
    paged: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """Wherever jobs are mounted, each request does the same, and all URLs that it
    answers stay there.
    """
    for place in PLACES:
        store.client.flushdb()
        job, other, failed = put(store, "alice", "alice", "bob", cls=RunMarathon)
        base = f"http://localhost{place}/"

        state = get(paged, f"{place}/{job}", "alice").json
        assert state["job"]["url"] == f"{base}{job}/"
        assert get(paged, f"{place}/{job}/", "alice").json == state
        for path in place, f"{place}/", f"{place}?kind=RunMarathon":
            items = get(paged, path, "alice").json["items"]
            assert items == [
                get(paged, f"{place}/{u}", "alice").json for u in (other, job)
            ]
        several = get(paged, f"{place}?uuid={job}&uuid={failed}", "alice").json
        assert several == {"jobs": {job: state, failed: None}}
        items = get(paged, f"{place}?all=1", OPERATOR).json["items"]
        assert len(items) == 3
        header = {"Cache-Control": "no-cache"}
        counts = get(paged, f"{place}/counts", OPERATOR, **header).json["counts"]
        assert counts["working"] == 3
        inspected = get(paged, f"{place}/{job}/inspect", OPERATOR).json
        assert inspected["uuid"] == job

        cancelled = act(paged, f"{place}/{job}/cancel", "alice")
        assert (cancelled.status_code, cancelled.json["job"]["url"]) == (
            202,
            f"{base}{job}/",
        )
        assert act(paged, f"{place}/cancel", owner="bob").json["done"] == 1
        (failed,) = put(store, "bob", cls=RunMarathon, status="error")
        again = act(paged, f"{place}/{failed}/rerun")
        assert (again.status_code, again.json["job"]["url"]) == (
            202,
            f"{base}{failed}/",
        )
        ended = put(store, *["bob"] * 3, status="error")
        assert act(paged, f"{place}/rerun", owner="bob", limit=1).json["done"] == 1
        assert act(paged, f"{place}/{ended[0]}", method="DELETE").status_code == 204
        assert act(paged, f"{place}/clear", owner="bob").json["done"] == 1
        assert sorted(map(str, statuses(store, *ended))) == ["None", "None", "queued"]


def test_refusals_are_the_same_at_each_place(paged: TestApp, store: JobStore) -> None:
    """Wherever jobs are mounted, nobody does more than elsewhere, and what is wrong is
    as wrong.
    """
    (job,) = put(store, "alice", cls=RunMarathon)
    for place in PLACES:
        for method, end, user, code in (
            ("GET", f"/{job}", "bob", 403),
            ("GET", "?all=1", "alice", 403),
            ("GET", "/counts", "alice", 403),
            ("GET", f"/{job}/inspect", "alice", 403),
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
        for end in f"/{job}/cancel", "/clear?everything=1&all=1":
            assert ask(paged, "POST", place + end, OPERATOR).status_code == 400
    assert statuses(store, job) == ["working"]


def test_pages_lead_to_their_place(paged: TestApp, store: JobStore) -> None:
    """Wherever jobs are mounted, their pages lead to each other, and their scripts post
    there.
    """
    batch = put_batch(
        store,
        members=[{"status": "error", "job_state_class": RunMarathon}],
        owner="alice",
    )
    (member,) = uuids_of(store.members(batch.uuid).items)
    for place in PLACES:
        base = f"http://localhost{place}/"
        assert browse(paged, place).location == f"{base}?all=1"
        found = browse(paged, f"{place}/?id=+{UUID.upper()}+")
        assert (found.status_code, found.location) == (302, f"{base}{UUID}/")
        of_batch = browse(paged, f"{place}/?batch={batch.uuid}&limit=1")
        assert of_batch.location == f"{base}{batch.uuid}/?limit=1"

        listed = Visit(paged, f"{place}/?all=1")
        page = Visit(paged, f"{place}/{batch.uuid}")
        of_member = Visit(paged, f"{place}/{member}")

        urls: list[Any] = [listed.data["first"], page.data["url"], page.data["list"]]
        for visit in listed, page, of_member:
            urls += [tag["src"] for tag in visit.all("job-state")]
            urls += [tag["href"] for tag in visit.all(".jobstate a")]
            urls += [each["url"] for each in visit.data.get("bulk", {}).values()]
        assert len(urls) > 25
        for url in urls:
            assert url.startswith(base), url
        assert of_member.link("Batch") == f"{base}{batch.uuid}/"
        items = get(paged, f"{place}/?all=1", OPERATOR).json["items"]
        assert listed.uuids == uuids_of(items)
        path = urlsplit(page.data["bulk"]["rerun"]["url"]).path
        assert path == f"{place}/rerun"
