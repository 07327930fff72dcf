"""The view that sends a job, in every application here."""

from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request

from tests.interop.jobs import run_marathon


def run(request: Request) -> Any:
    states = request.job_states
    # devpi-server does not use pyramid_tm, whose commit `send` waits for.
    send = states.send if hasattr(request, "tm") else states.send_immediately
    return send(run_marathon, 26)


def includeme(config: Configurator) -> None:
    config.add_route("marathons", "/+marathons", request_method="POST")
    config.add_view(run, route_name="marathons", renderer="json")
