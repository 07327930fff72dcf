"""Jobs in devpi-server, whose users log in for a token."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from webtest import TestApp
from zope.interface.interface import adapter_hooks

from tests.interop.contract import Contract
from tests.interop.support import Site, need

need("devpi_server")


@pytest.fixture(scope="module")
def _adapters() -> Iterator[None]:
    """Remove devpi's hook, which raises for others' interfaces in the process."""
    before = list(adapter_hooks)
    yield
    adapter_hooks[:] = before


@pytest.fixture(scope="module")
def site(
    interop_broker: Any, _adapters: None, tmp_path_factory: pytest.TempPathFactory
) -> Site:
    """A devpi-server with the users alice and bob beside its own root."""
    from devpi_server.config import get_pluginmanager, parseoptions
    from devpi_server.init import init
    from devpi_server.main import xom_from_config

    from tests.interop import devpi_jobs

    where = ["--serverdir", str(tmp_path_factory.mktemp("devpi") / "server")]
    init(
        argv=["devpi-init", *where, "--no-root-pypi", "--root-passwd", "root-password"]
    )
    plugins = get_pluginmanager()
    plugins.register(devpi_jobs)
    xom = xom_from_config(parseoptions(plugins, ["devpi-server", *where]))
    app = TestApp(xom.create_app(), extra_environ={"HTTP_ACCEPT": "application/json"})
    headers = {}
    for name, user in (("alice", "alice"), ("bob", "bob"), ("admin", "root")):
        login = {"user": user, "password": f"{user}-password"}
        if user != "root":
            app.put_json(f"/{user}", {"password": login["password"]}, status=201)
        token = app.post_json("/+login", login).json["result"]["password"]
        credentials = base64.b64encode(f"{user}:{token}".encode()).decode()
        headers[name] = {"X-Devpi-Auth": credentials}
    return Site(app, headers, {"alice": "alice", "bob": "bob"}, "/~jobs")


class TestDevpi(Contract):
    def test_own_urls_work_as_before(self, site):
        """Users, indexes and files of devpi are served and protected as before."""
        alice, bob = site.headers["alice"], site.headers["bob"]
        app = site.app
        app.put_json("/alice/dev", {"type": "stage"}, headers=bob, status=403)
        app.put_json("/alice/dev", {"type": "stage"}, headers=alice, status=200)
        app.post(
            "/alice/dev/",
            {":action": "file_upload", "name": "shoes", "version": "1.0"},
            upload_files=[("content", "shoes-1.0.tar.gz", b"lace")],
            headers=alice,
            status=200,
        )
        page = app.get("/alice/dev/+simple/shoes/", headers={"Accept": "text/html"})
        assert "shoes-1.0.tar.gz" in page.text
        assert site.get("/alice").json["type"] == "userconfig"
        assert site.get("/nobody").status_code == 404
        assert site.get("/+api").json["type"] == "apiconfig"

    def test_user_called_as_our_path_would_be(self, site):
        """A user may still be called job_state."""
        site.app.put_json("/job_state", {"password": "hush"}, status=201)
        assert site.get("/job_state").json["result"]["username"] == "job_state"
