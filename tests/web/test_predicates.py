"""The package's view predicates beside those of Pyramid and the application."""

from typing import Any

import pytest
import redis
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate.resources import JobStates
from tests.webapp import get, make_app, make_config, mounted_root, put_job

LATIN = "application/x-www-form-urlencoded; charset=ISO-8859-1"


def predicates_of(config: Configurator) -> list[str]:
    return [name for name, _ in config.get_predlist("view").sorter.sorted()]


def test_include_keeps_the_order_of_the_predicates(redis_url: str) -> None:
    """The include leaves the order of all other predicates unchanged."""
    config = make_config(redis_url)
    config.add_view_predicate("custom", lambda value, config: None)
    config.commit()
    before = predicates_of(config)
    config.include("pyramid_jobstate")
    config.commit()
    after = predicates_of(config)
    assert [name for name in after if not name.startswith("jobstate_")] == before


def test_views_of_the_application_keep_their_order(redis_url: str) -> None:
    """A header still outweighs a parameter in an application that includes us."""
    config = make_config(redis_url)
    for name, predicate in {"header": "X-Api", "request_param": "save"}.items():
        config.add_view(
            lambda request, name=name: Response(name), name="edit", **{name: predicate}
        )
    app = make_app(config)
    assert get(app, "/edit?save=1", X_Api="1").text == "header"
    assert get(app, "/edit?save=1").text == "request_param"


@pytest.mark.parametrize("path", ["/job_state", "/site/jobs"])
@pytest.mark.parametrize("query", ["", "?uuid={job}"])
def test_charset_of_a_body_does_not_matter(
    redis_url: str, client: redis.Redis, path: str, query: str
) -> None:
    """A GET that names the charset of a body is answered like any other."""
    app = make_app(make_config(redis_url, root_factory=mounted_root))
    url = path + query.format(job=put_job(client))
    response = get(app, url, "alice", Content_Type=LATIN)
    assert response.status_code == 200
    assert response.json == get(app, url, "alice").json


def mine(request: Request) -> Response:
    return Response("mine")


@pytest.mark.parametrize(
    ("predicates", "query", "headers"),
    [
        ({"request_method": "GET"}, "", {}),
        ({"request_method": ("GET", "HEAD")}, "", {}),
        ({"request_param": "html"}, "&html=1", {}),
        (
            {"xhr": True, "request_method": "GET"},
            "",
            {"X_Requested_With": "XMLHttpRequest"},
        ),
    ],
)
def test_view_of_the_application_for_a_mounted_container_wins(
    redis_url: str,
    client: redis.Redis,
    predicates: dict[str, Any],
    query: str,
    headers: dict[str, str],
) -> None:
    """The application's own view for a container in its tree answers batches too."""
    config = make_config(redis_url, root_factory=mounted_root)
    config.include("pyramid_jobstate")
    config.commit()
    config.add_view(mine, context=JobStates, **predicates)
    app = TestApp(config.make_wsgi_app())
    batch = f"/site/jobs?uuid={put_job(client)}{query}"
    assert get(app, batch, "alice", **headers).text == "mine"


def test_view_of_the_application_for_our_route_wins(
    redis_url: str, client: redis.Redis
) -> None:
    """An application that overrides our view for GET overrides it for batches too."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    config.commit()
    config.add_view(
        mine, route_name="pyramid_jobstate", context=JobStates, request_method="GET"
    )
    app = TestApp(config.make_wsgi_app())
    for path in ("/job_state", f"/job_state?uuid={put_job(client)}"):
        assert get(app, path, "alice").text == "mine"
