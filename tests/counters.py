"""Applications whose jobs count in a database, each in a transaction of its own."""

from __future__ import annotations

import contextlib
from typing import Any

import sqlalchemy
import transaction
import zope.sqlalchemy
from dramatiq import Broker
from persistent import Persistent
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid_zodbconn import get_connection
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    sessionmaker,
)

from pyramid_jobstate import RequestMiddleware
from tests.webapp import EXPLICIT


class Base(DeclarativeBase):
    """The tables."""


class Row(Base):
    """The counter in a relational database. Its version tells a change by another
    transaction where the database does not.
    """

    __tablename__ = "counter"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012, SQLAlchemy's form


class Mark(Base):
    """What one run of a job leaves in a relational database."""

    __tablename__ = "mark"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)


class Counter(Persistent):
    """The counter in an object database."""

    value = 0


class Marks(Persistent):
    """The marks in an object database.

    They are one attribute: an interrupt between a change of a mapping and the note that
    it has changed would leave the change to the next transaction.
    """

    names: tuple[str, ...] = ()


class SQL:
    """A relational database with a counter, and a mark for every run of a job that
    committed. It is used as the Pylons cookiecutter does.

    Attributes:
      settings: The settings of an application that uses it.
      has_one_phase: Whether it commits when it votes.
    """

    has_one_phase = True

    def __init__(self, url: str, *, is_new: bool = True) -> None:
        self.settings: dict[str, str] = {}
        # An interrupt within a pool would take one of its places for good.
        options: dict[str, Any] = {"poolclass": sqlalchemy.NullPool}
        if url.startswith("postgresql"):
            # At this level it tells conflicts itself.
            options["isolation_level"] = "REPEATABLE READ"
        self.engine = sqlalchemy.create_engine(url, **options)
        if is_new:
            Base.metadata.create_all(self.engine)
            with Session(self.engine) as session, session.begin():
                session.add(Row(id=1, value=0))

    def includeme(self, config: Configurator) -> None:
        """Have the requests of an application use the database."""
        factory = sessionmaker(bind=self.engine)

        def dbsession(request: Request) -> Session:
            session = factory(info={"request": request})
            zope.sqlalchemy.register(session, transaction_manager=request.tm)
            return session

        config.add_request_method(dbsession, reify=True)

    def root_factory(self, request: Request) -> Any:
        """Return a root with the item "counter"."""
        return {"counter": request.dbsession.get_one(Row, 1)}

    def mark(self, request: Request, name: str) -> None:
        """Leave a mark."""
        request.dbsession.add(Mark(name=name))

    def read(self) -> tuple[int, list[str]]:
        """Return the counter and the marks that have been committed."""
        with Session(self.engine) as session:
            marks = session.scalars(sqlalchemy.select(Mark.name)).all()
            return session.get_one(Row, 1).value, list(marks)

    def close(self) -> None:
        self.engine.dispose()


class Zodb:
    """The same with an object database, used through pyramid_zodbconn."""

    has_one_phase = False

    def __init__(self, uri: str, *, is_new: bool = True) -> None:
        self.settings = {"zodbconn.uri": uri}
        self._is_new = is_new

    def includeme(self, config: Configurator) -> None:
        config.include("pyramid_zodbconn")
        # The application's own database, since a file can be opened only once, and
        # pyramid_zodbconn has no other name for it.
        self.db = vars(config.registry)["_zodb_databases"][""]
        if self._is_new:
            with self.db.transaction() as connection:
                connection.root()["counter"] = Counter()
                connection.root()["marks"] = Marks()

    def root_factory(self, request: Request) -> Any:
        return get_connection(request).root()

    def mark(self, request: Request, name: str) -> None:
        marks = request.root["marks"]
        marks.names = (*marks.names, name)

    def read(self) -> tuple[int, list[str]]:
        manager = transaction.TransactionManager()
        with contextlib.closing(self.db.open(manager)) as connection:
            root = connection.root()
            found = root["counter"].value, list(root["marks"].names)
            manager.abort()
        return found

    def close(self) -> None:
        self.db.close()


Database = SQL | Zodb


def open_database(url: str, *, is_new: bool = False) -> Database:
    """Return the database at a URL of SQLAlchemy or ZODB."""
    kind = Zodb if url.startswith(("zeo", "file")) else SQL
    return kind(url, is_new=is_new)


def make_app(
    broker: Broker, store_url: str, database: Database, *, is_explicit: bool = True
) -> None:
    """Make an application, whose requests the actors of a broker receive.

    Parameters:
      store_url: The URL of the store.
      is_explicit: Whether pyramid_tm's manager is explicit, or that of the thread.
    """
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
