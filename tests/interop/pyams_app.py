"""A PyAMS application, with users, rights and the resource tree in its ZODB."""

from pyams_security.policy import PyAMSSecurityPolicy
from pyramid.config import Configurator

PACKAGES = """
    pyramid_tm pyramid_zodbconn pyramid_mailer cornice cornice_swagger
    pyams_utils pyams_site pyams_i18n pyams_mail pyams_security pyams_auth_http
"""


def main(global_config, **settings):
    # pyramid_tm asks for the user before PyAMS knows the site that keeps the users.
    settings.setdefault("tm.annotate_user", False)
    with Configurator(settings=settings) as config:
        config.hook_zca()
        config.set_security_policy(PyAMSSecurityPolicy(settings["pyams.secret"]))
        for package in PACKAGES.split():
            config.include(package)
        config.include("pyramid_jobstate")
        config.include("tests.interop.views")
        return config.make_wsgi_app()
