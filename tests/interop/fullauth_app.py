"""An application whose users are those of pyramid_fullauth."""

from pyramid.config import Configurator


def main(global_config, **settings):
    with Configurator(settings=settings) as config:
        config.include("pyramid_tm")
        config.include("pyramid_basemodel")
        config.include("pyramid_fullauth")
        config.include("pyramid_jobstate")
        config.include("tests.interop.views")
        return config.make_wsgi_app()
