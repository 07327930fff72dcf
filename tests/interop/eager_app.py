"""An application whose jobs run in the web process, with dramatiq-eager-broker."""

import os

import dramatiq
from dramatiq.middleware import default_middleware
from dramatiq_eager_broker import EagerBroker
from pyramid.config import Configurator

from pyramid_jobstate import JobStateMiddleware
from tests.webapp import Policy, Root

broker = EagerBroker([middleware() for middleware in default_middleware])
broker.add_middleware(JobStateMiddleware(url=os.environ["REDIS_URL"]))
dramatiq.set_broker(broker)


def main(global_config, **settings):
    with Configurator(settings=settings, root_factory=Root) as config:
        config.set_security_policy(Policy())
        config.include("pyramid_tm")
        config.include("pyramid_jobstate")
        config.include("tests.interop.eager_jobs")
        return config.make_wsgi_app()
