"""Jobs beside pyramid_exclog, which logs what the views of an application raise."""

import logging
import re
from typing import Any

import pytest
from pyramid.config import Configurator
from webtest import TestApp

from tests.interop.contract import Contract
from tests.interop.support import Site, away, need
from tests.jobs import messages
from tests.readme import DOCUMENTS

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
    def test_what_is_logged(self, site, interop_server, caplog):
        """What the application's own views raise is logged as before, refusals are not,
        and twenty polls while the store is away log one line.
        """
        caplog.set_level(logging.INFO)
        with pytest.raises(LookupError):
            site.get("/fail")
        assert len(messages(caplog, "exc_logger")) == 1
        caplog.clear()
        job = site.send("alice")
        for path in (f"/job_state/{job}", "/job_state/no-uuid", "/job_state?limit=0"):
            assert site.get(path, "bob").status_code >= 400
        with away(interop_server):
            polls = [site.get(f"/job_state/{job}", "alice") for _ in range(20)]
        assert {poll.status_code for poll in polls} == {503}
        assert messages(caplog, "exc_logger", logging.INFO) == []
        assert len(messages(caplog, "pyramid_jobstate")) == 1

    def test_outage_in_a_view_of_the_application(
        self, interop_broker, interop_server, caplog
    ):
        """StoreUnavailable in a view is logged, but not with the README's setting."""
        (value,) = re.findall(r"^  exclog\.ignore =\n((?: {6}.*\n)+)", DOCUMENTS, re.M)
        for settings, count in ({}, 1), ({"exclog.ignore": value}, 0):
            site = make_site(**settings)
            caplog.clear()
            with away(interop_server):
                response = site.ask("POST", site.marathons, "alice")
            assert response.status_code == 503
            assert len(messages(caplog, "exc_logger")) == count
