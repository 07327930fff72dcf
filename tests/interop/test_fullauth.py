"""Jobs in an application with pyramid_fullauth, whose users log in by its own form."""

from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from tests.interop.contract import Contract
from tests.interop.support import Site, need

need("pyramid_fullauth")


@pytest.fixture(scope="module")
def site(interop_broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """An application with the users alice, bob and an administrator in its database."""
    import pyramid_basemodel
    import transaction
    from pyramid_fullauth.models import User

    from tests.interop.fullauth_app import main

    database = Path(tmp_path_factory.mktemp("fullauth")) / "users.sqlite"
    app = TestApp(main({}, **{"sqlalchemy.url": f"sqlite:///{database}"}))
    session = pyramid_basemodel.Session
    headers, owners = {}, {}
    with transaction.manager:
        pyramid_basemodel.Base.metadata.create_all(session.get_bind())
        for name in ("alice", "bob", "admin"):
            user = User(username=name, email=f"{name}@example.com", address_ip="")
            user.password = f"{name}-password"
            user.is_admin = name == "admin"
            session.add(user)
            session.flush()
            owners[name] = user.id
    for name in owners:
        form = {"email": f"{name}@example.com", "password": f"{name}-password"}
        app.post("/login", form, status=303)
        cookies = "; ".join(f"{c}={value}" for c, value in app.cookies.items())
        headers[name] = {"Cookie": cookies}
        app.reset()
    return Site(app, headers, owners)


class TestFullauth(Contract):
    def test_own_urls_work_as_before(self, site):
        """The forms of pyramid_fullauth are shown; logged-in users are redirected."""
        assert "password" in site.get("/login").text
        alice = site.headers["alice"]
        assert site.app.get("/login", headers=alice).status_code == 303
        assert site.get("/register").status_code == 200
        assert site.get("/nowhere", "alice").status_code == 404
        assert site.get("/logout", "alice").status_code == 303
