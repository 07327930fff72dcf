"""The containers of jobs: lookup, their root, and mounting in a tree."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.traversal import find_resource, find_root

from pyramid_jobstate import JobState, JobStore, StoreUnavailable
from pyramid_jobstate.resources import JobStates
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.reading import FORBIDDEN, put
from tests.webapp import (
    ADMIN,
    NOWHERE,
    Root,
    get,
    made_config,
    make_app,
    make_config,
    make_request,
    mounted_root,
)

# Lookup


def test_container_finds_jobs(config: Configurator, store: JobStore) -> None:
    """A container is a mapping of uuids to instances of the jobs' classes, whose parent
    it is, also for Pyramid's own functions. It belongs to its request, to which a test
    may give its own.
    """
    uuid = put(store)
    request = make_request(config)
    job_states = request.job_states

    assert job_states is request.job_states
    assert job_states is not make_request(config).job_states
    found = find_resource(job_states, uuid)
    for job in job_states.find(uuid), job_states[uuid], found:
        assert isinstance(job, RunMarathon)
        assert (job.uuid, job.__name__) == (uuid, uuid)
        assert job.__parent__ is job_states
    assert job_states.find(UUID) is None
    with pytest.raises(KeyError, match=UUID):
        job_states[UUID]
    request.job_states = mine = JobStates(request)
    assert request.job_states is mine


def test_anything_but_a_uuid_is_unknown() -> None:
    """Anything but a uuid in its canonical form is unknown without asking the store, so
    that no name leads to another key of it. A uuid asks it.
    """
    job_states = make_request(made_config(NOWHERE)).job_states
    for name in "", "x", UUID.upper(), UUID + "\n", f"{{{UUID}}}", UUID[:-1], None, 5:
        assert job_states.find(name) is None, name

    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        job_states.find(UUID)

    assert caught.value.container is job_states
    assert isinstance(caught.value.__cause__, redis.ConnectionError)


# The root


def test_root_is_made_when_it_is_needed(redis_url: str, store: JobStore) -> None:
    """Only the request of somebody else than the owner makes the root, and once."""
    made: list[Root] = []

    def root(request: Request) -> Root:
        made.append(Root(request))
        return made[-1]

    config = make_config(redis_url, root_factory=root)
    app = make_app(config)
    uuid = put(store)

    assert get(app, f"/job_state/{uuid}", "alice").json["job"]["url"]
    get(app, f"/job_state/{UUID}", "alice")
    assert made == []
    get(app, f"/job_state/{uuid}", ADMIN)
    assert len(made) == 1
    job_state = make_request(config).job_states[uuid]
    assert find_root(job_state) is find_root(job_state) is made[1]


def test_root_that_fails_hides_no_rights(redis_url: str, store: JobStore) -> None:
    """A root factory's AttributeError could pass for a job without a parent, whose ACL
    alone would decide. Instead, the request fails.
    """

    def root(request: Request) -> Root:
        raise AttributeError("no site")

    app = make_app(make_config(redis_url, root_factory=root))
    path = f"/job_state/{put(store)}"

    assert get(app, path, "alice").status_code == 200
    with pytest.raises(RuntimeError, match="The root factory failed: no site"):
        get(app, path, "bob")


def test_container_may_be_the_root_of_the_application(
    redis_url: str, store: JobStore
) -> None:
    """A container that is the root has a plain root as its own parent."""
    app = make_app(make_config(redis_url, root_factory=JobStates))
    path = f"/job_state/{put(store)}"

    assert get(app, path, "alice").json["job"]["url"]
    assert get(app, path, ADMIN).status_code == 403


# Mounted in the application's tree


def test_views_of_the_application_work_beside_ours_in_its_tree(
    redis_url: str, store: JobStore
) -> None:
    """The application may have views, and error views, for jobs in its own tree."""

    def show(context: Any, request: Request) -> Response:
        return Response(context.__name__)

    config = make_config(redis_url, root_factory=mounted_root)
    config.add_view(show, name="page", context=JobState, permission="view_job")
    config.add_view(show, name="page", context=JobStates, permission="list_jobs")
    config.add_notfound_view(lambda e, r: Response("app 404", 404))
    config.add_forbidden_view(lambda e, r: Response("app 403", 403))
    app = make_app(config)
    uuid = put(store)

    for path, user, text in (
        (f"/jobs/{uuid}/page", "alice", uuid),
        (f"/jobs/{uuid}/page", "bob", "app 403"),
        (f"/jobs/{uuid}/none", "alice", "app 404"),
        ("/jobs/page", ADMIN, "jobs"),
        ("/jobs/page", "bob", "app 403"),
    ):
        assert get(app, path, user).text == text, (path, user)
    assert get(app, f"/jobs/{uuid}", "bob").json == FORBIDDEN
