"""Applications whose jobs count in a database, each in a transaction of its own.

A database has a counter with a value, and the names of the jobs that have committed.
"""

from typing import Any

import sqlalchemy
import zope.sqlalchemy
from dramatiq import Broker
from persistent import Persistent
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid_zodbconn import get_connection
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pyramid_jobstate import RequestMiddleware
from tests.webapp import EXPLICIT


class Base(DeclarativeBase): ...


class Row(Base):
    """The counter. Its version tells of another transaction's change."""

    __tablename__ = "counter"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]
    names: Mapped[str]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012, SQLAlchemy's form


class Counter(Persistent):
    """The counter in an object database."""

    value = 0
    names = ""


class SQL:
    """A relational database, used as the Pylons cookiecutter does."""

    #: Whether it commits when it votes.
    has_one_phase = True

    def __init__(self, url: str) -> None:
        self.settings: dict[str, str] = {}
        # An interrupt within a pool would take one of its places for good.
        self.engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        Base.metadata.create_all(self.engine)
        with Session(self.engine) as session, session.begin():
            if session.get(Row, 1) is None:
                session.add(Row(id=1, value=0, names=""))

    def includeme(self, config: Configurator) -> None:
        factory = sessionmaker(bind=self.engine)

        def dbsession(request: Request) -> Session:
            session = factory(info={"request": request})
            zope.sqlalchemy.register(session, transaction_manager=request.tm)
            return session

        config.add_request_method(dbsession, reify=True)

    def root_factory(self, request: Request) -> Any:
        return {"counter": request.dbsession.get_one(Row, 1)}

    def read(self) -> tuple[int, list[str]]:
        """Return the counter and the names that have been committed."""
        with Session(self.engine) as session:
            row = session.get_one(Row, 1)
            return row.value, row.names.split()

    def close(self) -> None:
        self.engine.dispose()


class Zodb:
    """An object database, used through pyramid_zodbconn."""

    has_one_phase = False

    def __init__(self, uri: str) -> None:
        self.settings = {"zodbconn.uri": uri}

    def includeme(self, config: Configurator) -> None:
        config.include("pyramid_zodbconn")
        # The application's own database, since a file can be opened only once, and
        # pyramid_zodbconn has no other name for it.
        self.db = vars(config.registry)["_zodb_databases"][""]
        with self.db.transaction() as connection:
            connection.root()["counter"] = Counter()

    def root_factory(self, request: Request) -> Any:
        return get_connection(request).root()

    def read(self) -> tuple[int, list[str]]:
        with self.db.transaction() as connection:
            counter = connection.root()["counter"]
            return counter.value, counter.names.split()

    def close(self) -> None:
        self.db.close()


Database = SQL | Zodb


def make_app(
    broker: Broker, store_url: str, database: Database, *, is_explicit: bool = True
) -> None:
    """Make an application, whose requests the actors of a broker receive."""
    settings = {
        "jobstate.redis_url": store_url,
        "retry.attempts": 3,
        **database.settings,
        **(EXPLICIT if is_explicit else {}),
    }
    config = Configurator(settings=settings, root_factory=database.root_factory)
    config.include("pyramid_retry")
    config.include("pyramid_tm")
    config.include(database.includeme)
    config.include("pyramid_jobstate")
    config.make_wsgi_app()
    requests = RequestMiddleware()
    requests.applications.add(config.registry)
    broker.add_middleware(requests)


def mark(request: Request, name: str) -> None:
    """Leave the name of a job in the database."""
    request.root["counter"].names += f"{name} "
