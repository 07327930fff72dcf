"""Jobs in devpi-server, as a plugin.

Its distribution has the entry point ``jobs = "tests.interop.devpi_jobs"`` in the group
``devpi_server``.
"""

from devpi_server.config import hookimpl
from pyramid.authorization import ACLHelper, Authenticated, Everyone


def permits(request, context, permission):
    user = request.authenticated_userid
    principals = [Everyone] if user is None else [Everyone, Authenticated, user]
    return user == "root" or ACLHelper().permits(context, principals, permission)


@hookimpl
def devpiserver_pyramid_configure(config, pyramid_config):
    # A user of devpi may be called job_state, but not ~jobs.
    pyramid_config.add_settings({"jobstate.permits": permits, "jobstate.path": "~jobs"})
    pyramid_config.include("pyramid_jobstate")
    pyramid_config.include("tests.interop.views")
