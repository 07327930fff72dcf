"""The view of every application here that sends a job."""

from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request

from tests.interop.jobs import run_marathon


def run(request: Request) -> Any:
    states = request.job_states
    # devpi-server has no pyramid_tm, whose transaction a job would wait for.
    send = states.send if hasattr(request, "tm") else states.send_immediately
    return send(run_marathon, 26)


def includeme(config: Configurator) -> None:
    config.add_route("marathons", "/+marathons", request_method="POST")
    config.add_view(run, route_name="marathons", renderer="json")
