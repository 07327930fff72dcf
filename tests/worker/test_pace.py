"""The pace of a job that runs for minutes, at times that the test gives."""

from pyramid_jobstate.worker.pace import Pace


def test_pace_is_that_of_the_last_half_minute() -> None:
    """A pace of long ago no longer counts, and a short pause changes the time left only
    by its share.
    """
    pace = Pace()
    for second in range(100):
        pace.eta(second, second * 100, 10**6)
    for second in range(1, 90):
        left = pace.eta(100 + second, 10**4 + second, 10**6)
    assert left == 10**6 - 10**4 - second
    pace = Pace()
    for second in range(100):
        pace.eta(second, second, 200)
    paused = pace.eta(105, 100, 200)
    assert paused is not None and 100 < paused < 125
    assert Pace().eta(0, 0, 1e308) is None
    assert pace.eta(10**6, 1e-300, 1e308) is None
