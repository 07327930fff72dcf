"""The application's own database, SQLite, that web and worker share."""

import functools
import os
from pathlib import Path
from typing import Any

import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.request import Request
from sqlalchemy import UniqueConstraint, create_engine, event
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    sessionmaker,
)


class Base(DeclarativeBase):
    pass


class Result(Base):
    """A runner's result, written by the import whose uuid it carries."""

    __tablename__ = "results"
    __table_args__ = (UniqueConstraint("import_uuid", "bib"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    import_uuid: Mapped[str]
    bib: Mapped[int]
    name: Mapped[str]
    country: Mapped[str]
    email: Mapped[str | None]
    seconds: Mapped[int]

    @property
    def clock(self) -> str:
        """The finish time as h:mm:ss."""
        minutes, seconds = divmod(self.seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"


@functools.cache
def data_dir() -> Path:
    """Return the folder for database and uploads: the environment's
    JOBSTATE_DEMO_DATA, by default `demo-data` where the process was started.
    """
    path = Path(os.environ.get("JOBSTATE_DEMO_DATA", "demo-data")).absolute()
    (path / "uploads").mkdir(parents=True, exist_ok=True)
    (path / ".gitignore").write_text("*\n")
    return path


@functools.cache
def session_factory() -> sessionmaker[Session]:
    """Return what makes database sessions, one and the same for a process."""
    engine = create_engine(f"sqlite:///{data_dir() / 'demo.sqlite'}")
    event.listen(engine, "connect", set_pragmas)
    return sessionmaker(engine)


def set_pragmas(connection: Any, record: object) -> None:
    # With a write-ahead log the pages read while an import writes.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA busy_timeout = 10000")


def dbsession(request: Request) -> Session:
    """Return a session that commits, or rolls back, with the request."""
    session = session_factory()()
    zope.sqlalchemy.register(session, transaction_manager=request.tm)
    return session


def includeme(config: Configurator) -> None:
    Base.metadata.create_all(session_factory().kw["bind"])
    config.add_request_method(dbsession, reify=True)
