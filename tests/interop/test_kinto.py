"""Jobs in Kinto, for the users of its own accounts."""

import base64
from typing import Any

import pytest
from webtest import TestApp

from tests.interop.contract import Contract
from tests.interop.support import Site, need

need("kinto")

SETTINGS = {
    "kinto.includes": "kinto.plugins.accounts tests.interop.kinto_jobs",
    "kinto.account_create_principals": "system.Everyone",
    "kinto.account_write_principals": "account:admin",
    "kinto.userid_hmac_secret": "hush",
    "multiauth.policies": "account basicauth",
    "multiauth.policy.account.use": "kinto.plugins.accounts.AccountsPolicy",
}


def credentials(user: str, password: str) -> dict[str, str]:
    text = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


@pytest.fixture(scope="module")
def site(interop_broker: Any) -> Site:
    """A Kinto with the accounts of Alice, Bob and an administrator."""
    import kinto

    app = TestApp(kinto.main({}, **SETTINGS))
    headers = {}
    for user in ("alice", "bob", "admin"):
        account = {"data": {"password": f"{user}-password"}}
        app.put_json(f"/v1/accounts/{user}", account, status=201)
        headers[user] = credentials(user, f"{user}-password")
    # A user of Kinto's other policy, which accepts any name and password.
    headers["guest"] = credentials("alice", "any")
    owners = {"alice": "account:alice", "bob": "account:bob"}
    return Site(app, headers, owners, "/v1/job_state", "/v1/+marathons")


class TestKinto(Contract):
    def test_users_of_another_policy_are_others(self, site):
        """A user who logs in as alice without an account is not Alice."""
        job = site.send("alice")
        assert site.get("/v1/", "guest").json["user"]["id"].startswith("basicauth:")
        assert site.get(f"{site.jobs}/{job}", "guest").status_code == 403
        theirs = site.send("guest")
        assert site.get(f"{site.jobs}/{theirs}", "guest").status_code == 200
        assert site.get(f"{site.jobs}/{theirs}", "alice").status_code == 403

    def test_own_urls_work_as_before(self, site):
        """Kinto's own resources, errors and redirects work as before."""
        alice = site.headers["alice"]
        record = {"data": {"colour": "green"}}
        path = "/v1/buckets/shoes"
        site.app.put_json(path, headers=alice, status=201)
        site.app.put_json(f"{path}/collections/red", headers=alice, status=201)
        site.app.post_json(
            f"{path}/collections/red/records", record, headers=alice, status=201
        )
        records = site.get(f"{path}/collections/red/records", "alice")
        assert [r["colour"] for r in records.json["data"]] == ["green"]
        assert site.get(f"{path}/collections/red/records", "bob").status_code == 403
        assert site.get("/v1/nowhere").json["errno"] == 111
        assert site.get("/v1/__heartbeat__").status_code == 200
        assert site.get("/buckets").headers["Location"].endswith("/v1/buckets")

    def test_batch_asks_for_jobs(self, site):
        """Kinto's batch endpoint passes on requests for jobs with the user's rights."""
        job = site.send("alice")
        requests = [{"path": f"/v1/job_state/{job}"}, {"path": "/v1/job_state"}]

        def statuses(user: str) -> list[int]:
            response = site.app.post_json(
                "/v1/batch", {"requests": requests}, headers=site.headers[user]
            )
            return [answer["status"] for answer in response.json["responses"]]

        assert statuses("alice") == [200, 200]
        assert statuses("bob") == [403, 200]
