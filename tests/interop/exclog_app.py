"""An application that logs what its views raise, with pyramid_exclog."""

from pyramid.config import Configurator

from tests.webapp import Policy, Root


def main(global_config, **settings):
    settings.setdefault("tm.manager_hook", "pyramid_tm.explicit_manager")
    with Configurator(settings=settings, root_factory=Root) as config:
        config.set_security_policy(Policy())
        config.include("pyramid_tm")
        config.include("pyramid_exclog")
        config.include("pyramid_jobstate")
        config.include("tests.interop.views")
        return config.make_wsgi_app()
