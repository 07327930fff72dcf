"""An application whose jobs run in the web process, with dramatiq-eager-broker."""

from pyramid.config import Configurator

from tests.webapp import Policy, Root


def main(global_config, **settings):
    with Configurator(settings=settings, root_factory=Root) as config:
        config.set_security_policy(Policy())
        config.include("pyramid_tm")
        # First, since it imports the actors and their broker.
        config.include("tests.interop.eager_jobs")
        config.include("pyramid_jobstate")
        return config.make_wsgi_app()
