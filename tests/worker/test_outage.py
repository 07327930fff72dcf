"""Outage: who may ask a store that is away, and what is logged about it."""

import logging
import time

import pytest

from pyramid_jobstate.worker import outage
from pyramid_jobstate.worker.outage import Outage
from tests.jobs import messages

LOG = logging.getLogger("tests.outage")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which the test can set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_everyone_asks_while_all_is_well(clock: list[float]) -> None:
    """Every caller may ask a store that answers."""
    found = Outage(LOG)
    assert [found.may_ask() for _ in range(3)] == [True] * 3


def test_one_a_second_asks_during_an_outage(clock: list[float]) -> None:
    """After a failure nobody may ask for one second; then one caller a second may."""
    found = Outage(LOG)
    found.begin()
    assert not found.may_ask()
    for _ in range(3):
        clock[0] += outage.PAUSE
        assert [found.may_ask() for _ in range(3)] == [True, False, False]
    found.begin()
    assert not found.may_ask()


def test_everyone_asks_after_the_outage(clock: list[float]) -> None:
    """One answer ends the outage for all."""
    found = Outage(LOG)
    found.begin()
    found.end()
    assert [found.may_ask() for _ in range(3)] == [True] * 3


def test_an_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """An outage is logged once, however many calls fail, and so is its end."""
    caplog.set_level(logging.INFO)
    found = Outage(LOG)
    found.recover()
    for _ in range(2):
        found.complain(ValueError("why"))
        found.complain(KeyError("another"))
        found.recover()
        found.recover()
    first, second, third, fourth = messages(caplog, LOG.name, logging.INFO)
    assert "does not accept updates" in first and first.endswith(": ValueError: why")
    assert second == "The job state store accepts updates again."
    assert (third, fourth) == (first, second)


def test_end_of_an_outage_may_be_silent(caplog: pytest.LogCaptureFixture) -> None:
    """Without a message for its end, each outage is logged only when it begins."""
    caplog.set_level(logging.INFO)
    found = Outage(LOG, "It is away: %s: %s", None)
    for _ in range(2):
        found.complain(ValueError("why"))
        found.recover()
    said = messages(caplog, LOG.name, logging.INFO)
    assert said == ["It is away: ValueError: why"] * 2
