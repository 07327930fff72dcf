"""Jobs in PyAMS, for the principals of a users folder in its security manager."""

import base64
from typing import Any

import pytest
from webtest import TestApp

from tests.interop.contract import Contract
from tests.interop.support import Site, need

need("pyams_security", "pyams_site", "pyams_auth_http", "pyams_layer")


@pytest.fixture(scope="module")
def site(interop_broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A PyAMS site with the users alice and bob, and PyAMS's own administrator."""
    import transaction
    from beaker.cache import cache_regions
    from pyams_security.interfaces import ISecurityManager
    from pyams_security.plugin.userfolder import LocalUser, UsersFolder
    from pyams_site.generations import upgrade_site
    from pyramid.scripting import prepare

    from tests.interop.pyams_app import main

    data = tmp_path_factory.mktemp("pyams") / "Data.fs"
    settings = {"zodbconn.uri": f"file://{data}", "pyams.secret": "hush"}
    # As pyramid_beaker does from an .ini file.
    for region in ("short", "long"):
        cache_regions[region] = {"type": "memory", "expire": 0}
    router = main({}, **settings)
    with prepare(registry=router.registry) as env, transaction.manager:
        manager = upgrade_site(env["request"]).getSiteManager()
        manager = manager.queryUtility(ISecurityManager)
        manager["users"] = folder = UsersFolder()
        folder.prefix, folder.title = "users", "Users"
        for name in ("alice", "bob"):
            folder[name] = user = LocalUser()
            user.login, user.email = name, f"{name}@example.com"
            user.firstname = user.lastname = name
            user.self_registered, user.password = False, f"{name}-password"
            user.activated = True
    headers = {}
    for name, password in (
        ("alice", "alice-password"),
        ("bob", "bob-password"),
        ("admin", "admin"),
    ):
        text = base64.b64encode(f"{name}:{password}".encode()).decode()
        headers[name] = {"Authorization": f"Basic {text}"}
    owners = {"alice": "users:alice", "bob": "users:bob"}
    return Site(TestApp(router), headers, owners)


class TestPyAMS(Contract):
    def test_own_urls_work_as_before(self, site):
        """PyAMS's own traversal and routes work as before."""
        assert site.get("/api/rest/monitor", "admin").json["status"] == "UP"
        for path in ("/nowhere", "/++etc++site/nowhere", "/++nope++jobs"):
            assert site.get(path, "admin").status_code == 404
