"""Jobs in Kinto, as a plugin: ``kinto.includes = tests.interop.kinto_jobs``."""

from pyramid.authorization import ACLHelper


def permits(request, context, permission):
    principals = request.prefixed_principals
    admin = request.registry.settings.get("account_write_principals")
    return admin in principals or ACLHelper().permits(context, principals, permission)


def owner(request):
    return request.authenticated_userid and request.prefixed_userid


def includeme(config):
    config.add_settings({"jobstate.permits": permits, "jobstate.owner": owner})
    config.include("pyramid_jobstate")
    config.include("tests.interop.views")
