"""The web server: ``python -m tests.soak.web`` prints its port and serves the jobs."""

import os
import threading

from waitress import create_server

from tests.webapp import make_config

from .actors import STALLED_AFTER


def main() -> None:
    end = threading.Timer(float(os.environ["SOAK_SECONDS"]), os._exit, (1,))
    end.daemon = True
    end.start()
    settings = {
        "jobstate.redis_url": os.environ["SOAK_STORE"],
        "jobstate.stalled_after": str(STALLED_AFTER),
    }
    config = make_config(None, settings=settings)
    config.include("pyramid_jobstate")
    server = create_server(
        config.make_wsgi_app(),
        host="127.0.0.1",
        port=0,
        threads=4,
        connection_limit=2000,
        asyncore_use_poll=True,
    )
    print(server.effective_port, flush=True)
    server.run()


if __name__ == "__main__":
    main()
