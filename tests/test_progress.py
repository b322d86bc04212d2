"""Progress lines: counts, rate from the first row that was seen, time left."""

from __future__ import annotations

import pytest

from vig_ray import progress
from vig_ray.progress import RowProgress, duration


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01"), (-3, "0 s")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_rate_counts_from_the_first_row_and_tells_what_is_left(monkeypatch, capsys) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with RowProgress("score", 1000, done=100, every=10.0) as bar:
        clock[0] += 60  # a model being loaded
        bar.update(100)
        clock[0] += 5
        bar.update(200)
        clock[0] += 10
        bar.update(400)
        assert bar.pace == "20.0 rows/s, 30 s left"
        bar.update(300)  # a late report never goes back
        bar.update(5000)  # nor past the end, where a retried batch is counted twice
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "score: 100 of 1,000 rows, starting"
    assert "score: 400 of 1,000 rows, 20.0 rows/s, 30 s left" in lines
    assert lines[-1].startswith("score: 1,000 of 1,000 rows, ")


def test_unknown_total(monkeypatch, capsys) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with RowProgress("import", None) as bar:
        bar.update(1000)
        clock[0] += 1
        bar.update(3000)
    assert capsys.readouterr().err.splitlines() == ["import: 3,000 rows, 2,000.0 rows/s"]
