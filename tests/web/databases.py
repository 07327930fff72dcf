"""Databases and other resources that take part in a transaction."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
import transaction
import ZODB.DB
import ZODB.MappingStorage
import zope.sqlalchemy
from pyramid.request import Request
from sqlalchemy.orm import Session


class SQLite:
    """A database file, changed through sessions that zope.sqlalchemy commits."""

    def __init__(self, path: Path) -> None:
        self.path = path / "marathons.sqlite"
        self.engine = sqlalchemy.create_engine(f"sqlite:///{self.path}")
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute("CREATE TABLE race (id INTEGER PRIMARY KEY)")

    def session(self, request: Request) -> Session:
        session = Session(self.engine)
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        request.add_finished_callback(lambda request: session.close())
        return session

    def write(self, request: Request) -> None:
        session = self.session(request)
        session.execute(sqlalchemy.text("INSERT INTO race DEFAULT VALUES"))
        zope.sqlalchemy.mark_changed(session, transaction_manager=request.tm)

    def count(self) -> int:
        """Return the number of rows that another connection sees."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return int(connection.execute("SELECT count(*) FROM race").fetchone()[0])

    def close(self) -> None:
        self.engine.dispose()


class Zodb:
    """An object database in memory."""

    def __init__(self, path: Path) -> None:
        self.db = ZODB.DB(ZODB.MappingStorage.MappingStorage())

    def write(self, request: Request) -> None:
        connection = self.db.open(request.tm)
        request.add_finished_callback(lambda request: connection.close())
        root = connection.root()
        root["races"] = root.get("races", 0) + 1

    def count(self) -> int:
        manager = transaction.TransactionManager()
        with contextlib.closing(self.db.open(manager)) as connection:
            count = connection.root().get("races", 0)
            manager.abort()
        return int(count)

    def close(self) -> None:
        self.db.close()


class Manager:
    """A third party's data manager that fails, or does worse, in one phase."""

    transaction_manager = None

    def __init__(self, key: str, phase: str, what: Callable[[], Any]) -> None:
        self.key = key
        setattr(self, phase, lambda transaction: what())

    def sortKey(self) -> str:  # noqa: N802, the interface's name
        return self.key

    def nothing(self, transaction: Any) -> None:
        pass

    abort = tpc_begin = commit = tpc_vote = tpc_finish = tpc_abort = nothing


def fail(error: type[Exception] = ZeroDivisionError) -> None:
    raise error("The database is full.")
