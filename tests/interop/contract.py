"""The tests that every application must pass, wherever it keeps its users."""

import uuid
from typing import Any

from pyramid_jobstate.embedded import EmbeddedServer
from tests.interop.support import REFUSED, Site, away
from tests.jobs import working
from tests.support import wait_for


class Contract:
    """The tests of one application, whose module defines the fixture `site`."""

    def test_owner_sees_and_cancels_their_job(self, site: Site) -> None:
        """Alice sends a job through a view of the application, sees it and cancels it.
        An administrator may, too; Bob and visitors who are not logged in may not.
        """
        job = site.send("alice")
        path, cancel = f"{site.jobs}/{job}", f"{site.jobs}/{job}/cancel"
        for url in (path, f"{path}/"):
            response = site.get(url, "alice")
            assert response.status_code == 200
            assert response.json["job"]["status"] == "queued"
            assert response.json["job"]["params"] == {"miles": 26}
            assert response.json["job"]["cancellable"] is True
        url = response.json["job"]["url"]
        assert url.endswith(f"{path}/")
        assert site.get(url, "alice").status_code == 200
        assert site.get(path, "bob").status_code == 403
        assert site.get(path).status_code in REFUSED
        assert site.ask("POST", cancel, "bob").status_code == 403
        assert site.ask("POST", cancel).status_code in REFUSED
        assert site.get(path, "admin").json["job"]["status"] == "queued"
        response = site.ask("POST", cancel, "alice")
        assert response.status_code == 202
        assert response.json["job"]["status"] == "cancelled"
        assert site.ask("POST", cancel, "alice").status_code == 409
        other = site.send("alice")
        cancelled = site.ask("POST", f"{site.jobs}/{other}/cancel", "admin")
        assert cancelled.status_code == 202

    def test_what_is_not_there(self, site: Site) -> None:
        """An unknown or malformed uuid is a 404, and another method is refused."""
        for user in "alice", "admin", None:
            for name in str(uuid.uuid4()), "no-uuid", "login":
                response = site.get(f"{site.jobs}/{name}", user)
                assert response.status_code == 404
                assert response.json == {"error": "The job does not exist."}
        job = site.send("alice")
        for user in "alice", "bob", None:
            response = site.ask("PUT", f"{site.jobs}/{job}", user)
            assert response.status_code == 405
            assert "Allow" in response.headers

    def test_lists_of_jobs(self, site: Site) -> None:
        """Without parameters, the list shows the user's own jobs, and of several jobs
        each user sees only their own. Only an administrator sees all jobs.
        """
        alices, bobs, unknown = site.send("alice"), site.send("bob"), str(uuid.uuid4())
        several = f"{site.jobs}?uuid={alices}&uuid={bobs}&uuid={unknown}"
        for user, own, seen in (
            ("alice", [alices], {alices}),
            ("bob", [bobs], {bobs}),
            ("admin", [], {alices, bobs}),
            (None, [], set()),
        ):
            assert items(site.get(site.jobs, user)) == own
            jobs = site.get(several, user).json["jobs"]
            assert jobs.keys() == {alices, bobs, unknown}
            assert {name for name, state in jobs.items() if state} == seen
        for query in ("all=1", f"owner={site.owners['alice']}"):
            path = f"{site.jobs}?{query}"
            assert site.get(path).status_code in REFUSED
            assert site.get(path, "bob").status_code == 403
            assert alices in items(site.get(path, "admin"))
        path = f"{site.jobs}?owner={site.owners['bob']}"
        assert items(site.get(path, "admin")) == [bobs]

    def test_preflight_is_the_applications(self, site: Site) -> None:
        """A CORS preflight gets the application's own answer, as at any other path."""
        headers = {
            "Origin": "https://shop.example.com",
            "Access-Control-Request-Method": "GET",
        }
        answers = [
            site.app.options(path, headers=headers, expect_errors=True)
            for path in (f"{site.jobs}/{uuid.uuid4()}", f"{site.jobs}x/y")
        ]
        assert answers[0].status_code == answers[1].status_code < 500
        assert "The job does not exist." not in answers[0].text

    def test_job_runs(self, site: Site, interop_broker: Any) -> None:
        """A worker runs it, and a script that anyone can get polls it."""
        job = site.send("alice")

        def ended() -> Any:
            state = site.get(f"{site.jobs}/{job}", "alice").json
            return state if state["job_state"] != "working" else None

        with working(interop_broker, threads=1):
            state = wait_for(ended, 10)
        assert state["job_state"] == "success"
        assert state["miles_run"] == 26
        assert state["job"]["progress"]["fraction"] == 1
        script = site.get(f"{site.jobs}/static/job-state.js")
        assert "startPolling" in script.text

    def test_store_away(self, site: Site, interop_server: EmbeddedServer) -> None:
        """While the store is away, every request that needs it is a 503."""
        job = site.send("alice")
        with away(interop_server):
            answers = [
                site.get(f"{site.jobs}/{job}", "alice"),
                site.get(f"{site.jobs}?uuid={job}", "alice"),
                site.get(site.jobs, "alice"),
                site.ask("POST", f"{site.jobs}/{job}/cancel", "alice"),
                site.ask("POST", site.marathons, "alice"),
            ]
        assert [answer.status_code for answer in answers] == [503] * 5
        assert all("Retry-After" in answer.headers for answer in answers)
        assert site.get(site.jobs, "alice").status_code == 200


def items(response: Any) -> list[str]:
    """Return the uuids of the jobs in a list."""
    assert response.status_code == 200
    return [state["job"]["uuid"] for state in response.json["items"]]
