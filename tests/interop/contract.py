"""The tests that every application must pass, wherever it keeps its users."""

import uuid
from typing import Any

import pytest

from pyramid_jobstate.embedded import EmbeddedServer
from tests.interop.support import REFUSED, Site, away
from tests.jobs import working
from tests.support import wait_for


class Contract:
    """The tests of one application. Each module with a subclass defines its own fixture
    `site`.
    """

    def test_owner_sees_their_job(self, site: Site) -> None:
        """Alice sends a job through a view of the application, and sees it."""
        job = site.send("alice")

        for path in (f"{site.jobs}/{job}", f"{site.jobs}/{job}/"):
            response = site.get(path, "alice")
            assert response.status_code == 200
            assert response.json["job_state"] == "working"
            assert response.json["job"]["status"] == "queued"
            assert response.json["job"]["params"] == {"miles": 26}
            assert response.json["job"]["cancellable"] is True
        url = response.json["job"]["url"]
        assert url.endswith(f"{site.jobs}/{job}/")
        assert site.get(url, "alice").status_code == 200

    def test_others_are_refused(self, site: Site) -> None:
        """Bob and visitors who are not logged in do not see Alice's job."""
        job = site.send("alice")

        assert site.get(f"{site.jobs}/{job}", "bob").status_code == 403
        assert site.get(f"{site.jobs}/{job}").status_code in REFUSED

    @pytest.mark.parametrize("user", ["alice", "bob", "admin", None])
    @pytest.mark.parametrize("name", [str(uuid.uuid4()), "no-uuid", "login"])
    def test_unknown_job_is_not_found(
        self, site: Site, name: str, user: str | None
    ) -> None:
        """An unknown or malformed uuid is a 404."""
        response = site.get(f"{site.jobs}/{name}", user)

        assert response.status_code == 404
        assert response.json == {"error": "The job does not exist."}

    def test_several_at_once(self, site: Site) -> None:
        """Of several jobs, each user sees only their own."""
        alices, bobs, unknown = site.send("alice"), site.send("bob"), str(uuid.uuid4())
        path = f"{site.jobs}?uuid={alices}&uuid={bobs}&uuid={unknown}"

        def seen(user: str | None) -> set[str]:
            response = site.get(path, user)
            assert response.status_code == 200
            assert response.json["jobs"].keys() == {alices, bobs, unknown}
            return {name for name, state in response.json["jobs"].items() if state}

        assert seen("alice") == {alices}
        assert seen("bob") == {bobs}
        assert seen("admin") == {alices, bobs}
        assert seen(None) == set()

    def test_list_of_ones_own(self, site: Site) -> None:
        """Without parameters, the list shows the user's own jobs."""
        alices, bobs = site.send("alice"), site.send("bob")

        assert items(site.get(site.jobs, "alice")) == [alices]
        assert items(site.get(site.jobs, "bob")) == [bobs]
        assert items(site.get(site.jobs, "admin")) == []
        assert items(site.get(site.jobs)) == []

    def test_list_of_all_is_for_admins(self, site: Site) -> None:
        """Only an administrator can list all jobs."""
        alices, bobs = site.send("alice"), site.send("bob")

        for query in ("all=1", f"owner={site.owners['alice']}"):
            path = f"{site.jobs}?{query}"
            assert site.get(path).status_code in REFUSED
            assert site.get(path, "bob").status_code == 403
            assert alices in items(site.get(path, "admin"))
        assert set(items(site.get(f"{site.jobs}?all=1", "admin"))) == {alices, bobs}
        path = f"{site.jobs}?owner={site.owners['bob']}"
        assert items(site.get(path, "admin")) == [bobs]

    def test_owner_cancels(self, site: Site) -> None:
        """Alice can cancel her job; Bob and visitors who are not logged in cannot."""
        job = site.send("alice")
        path = f"{site.jobs}/{job}/cancel"

        assert site.ask("POST", path, "bob").status_code == 403
        assert site.ask("POST", path).status_code in REFUSED
        assert site.get(f"{site.jobs}/{job}", "alice").json["job"]["status"] == "queued"
        response = site.ask("POST", path, "alice")
        assert response.status_code == 202
        assert response.json["job"]["status"] == "cancelled"
        assert site.ask("POST", path, "alice").status_code == 409

    def test_admin_cancels(self, site: Site) -> None:
        """An administrator sees and cancels anyone's job."""
        job = site.send("alice")

        assert site.get(f"{site.jobs}/{job}", "admin").status_code == 200
        response = site.ask("POST", f"{site.jobs}/{job}/cancel", "admin")
        assert response.status_code == 202

    def test_other_methods_are_refused(self, site: Site) -> None:
        """Other methods are refused to everyone."""
        job = site.send("alice")

        for user in ("alice", "bob", None):
            for path in (f"{site.jobs}/{job}", f"{site.jobs}/{job}/cancel"):
                response = site.ask("PUT", path, user)
                assert response.status_code == 405
                assert "Allow" in response.headers
        assert site.get(f"{site.jobs}/{job}", "alice").status_code == 200

    def test_preflight_is_the_applications(self, site: Site) -> None:
        """A CORS preflight gets the application's own answer, as at any other path."""
        answers = [
            site.app.options(
                path,
                headers={
                    "Origin": "https://shop.example.com",
                    "Access-Control-Request-Method": "GET",
                },
                expect_errors=True,
            )
            for path in (f"{site.jobs}/{uuid.uuid4()}", f"{site.jobs}x/y")
        ]

        assert answers[0].status_code == answers[1].status_code < 500
        assert "The job does not exist." not in answers[0].text

    def test_job_runs(self, site: Site, interop_broker: Any) -> None:
        """A worker runs the job, and its last values can be polled."""
        job = site.send("alice")

        def ended() -> Any:
            state = site.get(f"{site.jobs}/{job}", "alice").json
            return state if state["job_state"] != "working" else None

        with working(interop_broker, threads=1):
            state = wait_for(ended, 10)
        assert state["job_state"] == "success"
        assert state["miles_run"] == 26
        assert state["job"]["progress"]["fraction"] == 1

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

    def test_script_is_served(self, site: Site) -> None:
        """Anyone can get the polling script."""
        response = site.get(f"{site.jobs}/static/job-state.js")

        assert response.status_code == 200
        assert "startPolling" in response.text


def items(response: Any) -> list[str]:
    """Return the uuids of the jobs in a list."""
    assert response.status_code == 200
    return [state["job"]["uuid"] for state in response.json["items"]]
