"""Jobs beside pyramid_exclog, which logs what the views of an application raise."""

import logging
import re
from typing import Any

import pytest
from pyramid.config import Configurator
from webtest import TestApp

from pyramid_jobstate.embedded import EmbeddedServer
from tests.interop.contract import Contract
from tests.interop.support import Site, away, need
from tests.jobs import messages
from tests.readme import README

need("pyramid_exclog")


def fail(request: Any) -> Any:
    raise LookupError("no shoes")


def includeme(config: Configurator) -> None:
    config.add_route("fail", "/fail")
    config.add_view(fail, route_name="fail")


def make_site(**settings: str) -> Site:
    from tests.interop.exclog_app import main

    headers = {user: {"X-User": user} for user in ("alice", "bob", "admin")}
    app = TestApp(main({}, **{"pyramid.includes": __name__, **settings}))
    return Site(app, headers, {"alice": "alice", "bob": "bob"})


@pytest.fixture(scope="module")
def site(interop_broker: Any) -> Site:
    """An application with pyramid_exclog, and its own failing view."""
    return make_site()


class TestExclog(Contract):
    def test_application_that_fails_is_logged(self, site: Site, caplog: Any) -> None:
        """What the application's own views raise is logged as before."""
        with pytest.raises(LookupError):
            site.get("/fail")

        assert len(messages(caplog, "exc_logger")) == 1

    def test_outage_is_logged_once(
        self, site: Site, interop_server: EmbeddedServer, caplog: Any
    ) -> None:
        """While the store is away, twenty polls get a 503 but log one line."""
        job = site.send("alice")
        caplog.clear()
        caplog.set_level(logging.INFO)

        with away(interop_server):
            polls = [site.get(f"/job_state/{job}", "alice") for _ in range(20)]

        assert {poll.status_code for poll in polls} == {503}
        assert messages(caplog, "exc_logger", logging.INFO) == []
        assert len(messages(caplog, "pyramid_jobstate")) == 1

    @pytest.mark.parametrize("is_ignored", [False, True])
    def test_outage_in_a_view_of_the_application(
        self,
        interop_broker: Any,
        interop_server: EmbeddedServer,
        caplog: Any,
        is_ignored: bool,
    ) -> None:
        """StoreUnavailable in a view is logged, but not with the README's setting."""
        (value,) = re.findall(r"^  exclog\.ignore =\n((?: {6}.*\n)+)", README, re.M)
        site = make_site(**({"exclog.ignore": value} if is_ignored else {}))

        with away(interop_server):
            response = site.ask("POST", site.marathons, "alice")

        assert response.status_code == 503
        assert len(messages(caplog, "exc_logger")) == (0 if is_ignored else 1)

    def test_requests_refused_are_not_logged(self, site: Site, caplog: Any) -> None:
        """A 404, a 403 or a 400 for jobs is not logged."""
        job = site.send("alice")

        for path in (f"/job_state/{job}", "/job_state/no-uuid", "/job_state?limit=0"):
            assert site.get(path, "bob").status_code >= 400
        assert messages(caplog, "exc_logger") == []
