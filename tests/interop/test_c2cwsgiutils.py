"""Jobs beside c2cwsgiutils, whose views answer for every exception."""

from typing import Any

import pytest
from webtest import TestApp

from tests.interop.contract import Contract
from tests.interop.support import Site, need

need("c2cwsgiutils", "cornice", "prometheus_client", "sentry_sdk", "sqlalchemy")


@pytest.fixture(scope="module")
def site(interop_broker: Any) -> Site:
    """A service with the views of c2cwsgiutils for all exceptions."""
    from tests.interop.c2c_app import main

    headers = {user: {"X-User": user} for user in ("alice", "bob", "admin")}
    return Site(TestApp(main({})), headers, {"alice": "alice", "bob": "bob"})


class TestC2cwsgiutils(Contract):
    def test_own_urls_work_as_before(self, site):
        """Errors of the application are JSON in the format of c2cwsgiutils."""
        response = site.get("/nowhere")
        assert response.status_code == 404
        assert response.json["status"] == 404
        assert site.get("/c2c").status_code == 200

    def test_requests_refused_keep_our_form(self, site):
        """An invalid request for jobs gets our answer rather than c2cwsgiutils' own."""
        response = site.get("/job_state?limit=many", "alice")
        assert response.status_code == 400
        assert response.json == {"error": "limit must be a number, not 'many'."}
