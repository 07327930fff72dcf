"""Metrics: set one at a time or several at once, counted, and limited together."""

import threading
from typing import Any

import pytest

from tests.actor.calls import JOB, NAN, VALUE


def test_metrics_are_set_at_once(job_state):
    """Several are set in one call, with whatever names; the keyword wins."""
    job_state.set_progress_metrics({"a": 1}, self=2, mapping=3, a=4)
    assert job_state.progress_metrics == {"a": 4, "self": 2, "mapping": 3}
    wrong: Any
    for wrong in ([("a", 1)], {1: 2}):
        with pytest.raises(TypeError):
            job_state.set_progress_metrics(wrong)


@pytest.mark.promise("values-of-one-call-appear-together")
def test_metrics_are_set_together_or_not_at_all(job_state):
    """If one of several is refused, none changes, and viewers see none of them."""
    job_state.set_progress_metrics(a=1, c="text")
    for bad in (
        {"": 1},
        {"b": NAN},
        {"b": object()},
        {"b": "x" * VALUE},
        {str(i): "x" * 16_000 for i in range(17)},
    ):
        with pytest.raises((TypeError, ValueError)):
            job_state.set_progress_metrics({"a": 2, **bad})
        assert job_state.progress_metrics == {"a": 1, "c": "text"}


def test_counters_count_from_zero(job_state):
    """A counter starts at 0 and stays exact, also where floats and Lua are not."""
    job_state.increment_progress_metric("a", 2)
    job_state.increment_progress_metric("a", 0.5)
    job_state.increment_progress_metric("b")
    assert job_state.progress_metrics == {"a": 2.5, "b": 1}
    job_state.set_progress_metric("a", 2**62 - 1)
    job_state.increment_progress_metric("a", 1)
    job_state.increment_progress_metric("a", 2**80)
    assert job_state.get_progress_metric("a") == 2**62 + 2**80
    job_state.increment_progress_metric("a", -(2**80))
    job_state.increment_progress_metric("a", -1)
    assert job_state.get_progress_metric("a") == 2**62 - 1


class Patient(int):
    """A number that lets another thread come in between while it is added."""

    added = threading.Event()
    comes_in = threading.Event()

    def __radd__(self, other: int) -> int:
        self.added.set()
        # If the counter is as exact as it should be, nobody comes.
        self.comes_in.wait(0.2)
        return other + int(self)


@pytest.mark.promise("counters-are-exact")
def test_counters_are_exact_among_threads(job_state):
    """What two threads add at the same time is added twice."""

    def come_in() -> None:
        assert Patient.added.wait(10)
        job_state.increment_progress_metric("a")
        Patient.comes_in.set()

    other = threading.Thread(target=come_in)
    other.start()
    job_state.increment_progress_metric("a", Patient(1))
    other.join()
    assert job_state.get_progress_metric("a") == 2


def test_counters_refuse_what_they_cannot_add(job_state):
    """The error names the metric, and nothing changes."""
    wrong: Any
    for wrong in ("text", None, True, [1]):
        job_state.set_progress_metric("a", wrong)
        with pytest.raises(TypeError, match="'a' cannot be incremented"):
            job_state.increment_progress_metric("a")
        with pytest.raises(TypeError, match="'b' cannot be incremented"):
            job_state.increment_progress_metric("b", wrong)
    job_state.set_progress_metric("a", 1)
    with pytest.raises(ValueError, match="'a'"):
        job_state.increment_progress_metric("a", NAN)
    assert job_state.progress_metrics == {"a": 1}
    job_state.set_progress_metric("a", 10**400)
    with pytest.raises(ValueError, match="'a' cannot be incremented"):
        job_state.increment_progress_metric("a", 1.5)


@pytest.mark.promise("values-are-bounded")
def test_metrics_of_a_job_take_256_kib(job_state):
    """Names and JSON count, and not a byte more fits. A replaced value counts once."""
    metrics = {str(i): "a" * (VALUE - 2) for i in range(JOB // VALUE - 1)}
    room = JOB - sum(len(name) + VALUE for name in metrics)
    metrics["rest"] = "a" * (room - len("rest") - 2)
    job_state.set_progress_metrics(metrics)
    with pytest.raises(ValueError, match=r"'x' the job's metrics would take 262169 b"):
        job_state.set_progress_metric("x", 1)
    job_state.set_progress_metric("0", "b" * (VALUE - 2))
    with pytest.raises(ValueError, match=r"would take 262145 bytes\. The limit"):
        job_state.set_progress_metric("rest", metrics["rest"] + "a")
