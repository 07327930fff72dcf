"""The application's own SQLite database, shared by the web process and the worker."""

import functools
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.request import Request
from sqlalchemy import (
    ForeignKey,
    UniqueConstraint,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    sessionmaker,
)


class Base(DeclarativeBase):
    pass


class Upload(Base):
    """A CSV file, as its owner uploaded it."""

    __tablename__ = "uploads"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    filename: Mapped[str]
    content: Mapped[bytes]
    #: The uuid of the batch that imports it among others, or None.
    batch: Mapped[str | None] = mapped_column(index=True)
    uploaded_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))


class Result(Base):
    """A runner's result, imported from an upload."""

    __tablename__ = "results"
    __table_args__ = (UniqueConstraint("upload_id", "bib"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    upload_id: Mapped[int] = mapped_column(ForeignKey(Upload.id))
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


class Note(Base):
    """What the end of an import leaves in the inbox of its owner."""

    __tablename__ = "notes"

    #: The import, a job or a batch, and when it ended: it may run again.
    uuid: Mapped[str] = mapped_column(primary_key=True)
    finished_at: Mapped[datetime] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(index=True)
    text: Mapped[str]
    is_read: Mapped[bool] = mapped_column(default=False)


@functools.cache
def session_factory() -> sessionmaker[Session]:
    """Return the factory of this process for database sessions.

    The database is in the folder that the environment variable JOBSTATE_DEMO_DATA
    names, by default `demo-data` in the current directory.
    """
    folder = Path(os.environ.get("JOBSTATE_DEMO_DATA", "demo-data")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    engine = create_engine(f"sqlite:///{folder / 'demo.sqlite'}")
    event.listen(engine, "connect", set_pragmas)
    return sessionmaker(engine)


def set_pragmas(connection: Any, record: object) -> None:
    # A write-ahead log lets the pages read while an import writes.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA busy_timeout = 10000")


def dbsession(request: Request) -> Session:
    """Return a session that commits or rolls back with the request."""
    session = session_factory()()
    zope.sqlalchemy.register(session, transaction_manager=request.tm)
    return session


def unread_notes(request: Request) -> int:
    """Return how many notes in the user's inbox are new."""
    unread = select(func.count()).where(
        Note.owner == request.authenticated_userid, ~Note.is_read
    )
    return request.dbsession.execute(unread).scalar_one()


def includeme(config: Configurator) -> None:
    with session_factory().kw["bind"].begin() as connection:
        # The web process and the worker may start at once. One creates the tables.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        Base.metadata.create_all(connection)
    config.add_request_method(dbsession, reify=True)
    config.add_request_method(unread_notes, reify=True)
