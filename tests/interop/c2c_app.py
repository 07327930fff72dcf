"""A service with c2cwsgiutils, whose exception views answer for the application."""

from pyramid.config import Configurator

from tests.webapp import Policy, Root


def main(global_config, **settings):
    settings.setdefault("c2c.enable_exception_handling", "1")
    with Configurator(settings=settings, root_factory=Root) as config:
        config.set_security_policy(Policy())
        config.include("c2cwsgiutils.pyramid")
        config.include("pyramid_jobstate")
        config.include("tests.interop.views")
        return config.make_wsgi_app()
