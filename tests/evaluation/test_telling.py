"""What is said once of data that is read more than once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.asking import begun
from tests.evaluation.test_blind_faith import rows
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.told import warn_once


def test_what_is_left_out_is_told_once_by_one_function(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Samples by their reader, questions by the tasks around others: all lines come from one logger."""
    warn_once.cache_clear()  # another test of this process may have led to the same line
    own = tmp_path / "own.json"
    turns = [{"from": "human", "value": "So?"}, {"from": "gpt", "value": "Yes."}]
    own.write_text(json.dumps([{"id": "a", "conversations": turns}, {"id": "b", "conversations": turns[:1]}]))
    asked = rows(tmp_path, [{"question": "So?", "answer": "yes"}, {"question": "Not?", "answer": "no", "image": []}])
    for name, file in (("held-out", own), ("attention:exact", asked)):
        given = Given(str(file))
        for _ in range(2):
            assert list(begun(name, given).read(given))
    told = [record for record in caplog.records if "left out" in record.getMessage()]
    assert [record.getMessage().partition(": ")[0] for record in told] == [str(own), "attention:exact"]
    assert {record.name for record in told} == {"vig_ray.evaluation.told"}
