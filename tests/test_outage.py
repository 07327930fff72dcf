"""Outage and Complaint: who waits for a store that is away, and what is said of it."""

import logging

import pytest

from pyramid_jobstate import outage
from pyramid_jobstate.outage import Complaint, Outage
from tests.jobs import messages


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, to be set."""
    now = [1000.0]
    monkeypatch.setattr(outage.time, "monotonic", lambda: now[0])
    return now


def test_everyone_asks_while_all_is_well(clock: list[float]) -> None:
    """Nobody is held back from a store that answers."""
    found = Outage()
    assert [found.may_ask() for _ in range(3)] == [True] * 3


def test_one_a_second_asks_during_an_outage(clock: list[float]) -> None:
    """After a failure nobody asks for a second, and then one in each second."""
    found = Outage()
    found.begin()
    assert not found.may_ask()
    for _ in range(3):
        clock[0] += outage.PAUSE
        assert [found.may_ask() for _ in range(3)] == [True, False, False]
    found.begin()
    assert not found.may_ask()


def test_everyone_asks_after_the_outage(clock: list[float]) -> None:
    """One answer ends the outage for all."""
    found = Outage()
    found.begin()
    found.end()
    assert [found.may_ask() for _ in range(3)] == [True] * 3


def test_a_complaint_is_made_once(caplog: pytest.LogCaptureFixture) -> None:
    """However often it happens it is said once, and once that it is over."""
    caplog.set_level(logging.INFO)
    complaint = Complaint(logging.getLogger("a"), "is away", "is back")
    complaint.close()
    for _ in range(2):
        complaint.open(ValueError("why"))
        complaint.open(KeyError("another"))
        complaint.close()
        complaint.close()
    said = ["is away: ValueError: why", "is back."] * 2
    found = messages(caplog, "a", logging.INFO)
    assert found == [f"The job state store {what}" for what in said]


def test_a_complaint_may_end_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """Without a word for it nothing is said in the end."""
    caplog.set_level(logging.INFO)
    complaint = Complaint(logging.getLogger("a"), "is away")
    complaint.open(ValueError())
    complaint.close()
    assert len(messages(caplog, "a", logging.INFO)) == 1
