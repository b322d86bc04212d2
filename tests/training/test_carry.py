"""Weights carried over to other tokens, by hand and against a plain loop over characters."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.selection.made import copy_outputs
from tests.training.runs import setup_of
from tests.training.test_data import changed
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.load import Prompts, load_formatter
from vig_ray.model.prompt import Prompt
from vig_ray.selection.answer_tokens import AnswerTokens, answer_tokens
from vig_ray.tables.rows import Rows
from vig_ray.training import job
from vig_ray.training import plan as planning
from vig_ray.training.batch import TrainingSample
from vig_ray.training.carry import aligner_of, carry_weights, prompts_then
from vig_ray.training.config import TrainConfig
from vig_ray.training.loader import SAMPLE_COLUMNS, SELECTION_COLUMNS, Mismatch


def old(weights: list[float], chars: list[list[int]], turns: list[int] | None = None) -> AnswerTokens:
    return AnswerTokens([0] * len(weights), weights, turns or [0] * len(weights), chars, len(weights))


def new(chars: list[list[int]], turns: list[int] | None = None) -> Prompt:
    places = np.arange(1, len(chars) + 1, dtype=np.int32)
    return Prompt(
        np.zeros(len(chars) + 1, dtype=np.int32),
        places,
        np.array(turns or [0] * len(chars), dtype=np.int32),
        np.zeros(len(chars) + 1, dtype=bool),
        np.zeros((0, 2), dtype=np.int32),
        (),
        np.array(chars, dtype=np.int32),
    )


def test_the_same_tokens_keep_their_weights() -> None:
    chars = [[0, 3], [3, 7], [7, 7]]
    for weights in ([1.0, 0.0, 1.0], [0.5, 2.0, 0.5]):
        found = carry_weights(old(weights, chars), new(chars))
        np.testing.assert_allclose(found.weights_T, weights)
        assert found.exact_T.all()


def test_a_mask_goes_by_the_half_of_a_tokens_characters() -> None:
    of = old([1.0, 0.0, 1.0], [[0, 4], [4, 8], [8, 8]])
    found = carry_weights(of, new([[0, 2], [2, 6], [3, 7], [7, 8], [8, 8]]))
    assert found.weights_T.tolist() == [1, 1, 0, 0, 1]
    assert found.exact_T.tolist() == [False, False, False, False, True]


def test_what_was_cut_off_makes_the_rest_no_heavier() -> None:
    """Of four old tokens two were scored, with a mean of 1."""
    cut = old([0.5, 1.5, 0.0, 0.0], [[0, 4], [4, 8], [8, 12], [12, 16]])._replace(scored=2)
    found = carry_weights(cut, new([[0, 2], [2, 4], [4, 8], [8, 16]]))
    np.testing.assert_allclose(found.weights_T, np.array([0.5, 0.5, 1.5, 0.0]) / (2.5 / 3))


def test_other_weights_are_means_that_keep_the_samples_mean() -> None:
    found = carry_weights(old([0.5, 1.5], [[0, 4], [4, 8]]), new([[0, 4], [4, 6], [6, 8], [2, 6]]))
    means = np.array([0.5, 1.5, 1.5, 1.0])
    np.testing.assert_allclose(found.weights_T, means / means.mean(), rtol=1e-6)
    assert found.exact_T.tolist() == [True, False, False, False]


def test_spaces_turns_and_what_was_cut_off() -> None:
    # A space between 3 and 4 that no old token covers; a second turn of which nothing was left.
    of = old([1.0, 0.0, 1.0], [[0, 3], [4, 7], [7, 7]])
    found = carry_weights(of, new([[0, 4], [3, 4], [4, 7], [7, 7], [0, 5], [5, 5]], [0, 0, 0, 0, 1, 1]))
    assert found.weights_T.tolist() == [1, 1, 0, 1, 0, 0]
    cut = AnswerTokens([0] * 3, [1.0, 0.0, 0.0], [0] * 3, [[0, 3], [3, 6], [6, 6]], 1)
    assert carry_weights(cut, new([[0, 3], [3, 6], [6, 6]])).weights_T.tolist() == [1, 0, 0]


@pytest.fixture(scope="module")
def other(qwen_checkpoint: str) -> Prompts:
    return Prompts(qwen_checkpoint)


def test_a_selection_without_weights_trains_with_any_tokenizer(chosen: Path, tmp_path: Path, other: Prompts) -> None:
    folder = changed(chosen, tmp_path, lambda rows: [row | {"token_weights": None} for row in rows])
    loaded = setup_of(folder, model=other.model).source(images=False).__getitems__(range(8))
    for sample in loaded:
        assert isinstance(sample, TrainingSample)
        assert (sample.weights_T == 1).all()
        assert len(sample.weights_T) == len(sample.prompt.answer_positions)


def test_a_mask_is_refused_unless_it_is_carried_over(chosen: Path, other: Prompts) -> None:
    plain = setup_of(chosen, model=other.model)
    assert any(isinstance(each, Mismatch) for each in plain.source(images=False).__getitems__(range(8)))
    from dataclasses import replace

    setup = replace(plain, then=Prompts(CHECKPOINT))
    source = pickle.loads(pickle.dumps(setup.source(images=False)))
    positions = list(range(40))
    formatter = load_formatter(CHECKPOINT)
    rows = Rows(str(chosen / "samples"), SAMPLE_COLUMNS).get(setup.index.sample_at[positions])
    assert setup.index.selection_at is not None
    weighed = Rows(str(chosen / "selection"), SELECTION_COLUMNS).get(setup.index.selection_at[positions])
    active = 0
    for sample, row, own in zip(source.__getitems__(positions), rows, weighed, strict=True):
        assert isinstance(sample, TrainingSample)
        then = answer_tokens(row, own["token_ids"], own["token_weights"], formatter)
        is_active: dict[tuple[int, int], float] = {}
        for weight, turn, (first, past) in zip(then.weights, then.turns, then.chars, strict=True):
            is_active |= {(turn, place): weight for place in range(first, past)}
        prompt = sample.prompt
        for weight, turn, (first, past) in zip(
            sample.weights_T, prompt.turns.tolist(), prompt.answer_chars.tolist(), strict=True
        ):
            known = [is_active[turn, place] for place in range(first, past) if (turn, place) in is_active]
            if len(known) == past - first > 0:
                assert weight == float(np.mean(known) >= 0.5)
        active += int(sample.weights_T.sum())
    assert active > 0
    assert 0.2 < source.exact_share(positions) <= 1.0
    assert plain.source(images=False).exact_share(positions) == 1.0  # nothing is carried


def test_what_cannot_be_carried_is_one_line(chosen: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--align carries a selection's weights over; give --selection"):
        TrainConfig(model="m", samples="s", out="o", align="characters")
    with pytest.raises(StageError, match="doesn't say by which model"):
        prompts_then({}, "there", False)
    named = {"prompts": {"model": CHECKPOINT, "template": "auto"}, "template": "of another"}
    with pytest.raises(StageError, match="isn't the model that there was made with any more"):
        aligner_of(prompts_then(named, "there", False), named, "there")


def test_the_plan_says_what_the_weights_were_made_with(chosen: Path, tmp_path: Path, other: Prompts) -> None:
    options = {"samples": str(chosen), "selection": str(chosen), "out": str(tmp_path)}
    plan = planning.check(TrainConfig(model=other.model, align="characters", **options))
    assert plan.then is not None
    assert plan.then.model == CHECKPOINT
    assert plan.identity["options"]["align"] == "characters"
    same = planning.check(TrainConfig(model=CHECKPOINT, **options))
    assert same.then is None
    assert "align" not in same.identity["options"]


def test_the_selections_model_is_loaded_where_weights_are_carried_and_once_the_output_is_had(
    chosen: Path, tmp_path: Path, other: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be gone by then."""
    for name, strategy in (("masks", "vig"), ("whole", "vig-samples")):
        record = copy_selection(chosen, tmp_path / name)
        told = json.loads(record.read_text())
        told["prompts"]["model"] = str(tmp_path / "gone")
        told["selection"]["strategy"] = strategy
        record.write_text(json.dumps(told))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "another's").touch()
    options = {"model": other.model, "samples": str(chosen), "align": "characters", "max_steps": 1}

    def given(selection: str, **more: Any) -> TrainConfig:
        return TrainConfig(**options | {"selection": str(tmp_path / selection), "out": str(tmp_path)} | more)

    with pytest.raises(StageError, match="model/another's"):  # the output first
        job.run(given("masks"))
    for more in ({"dry_run": True}, {"out": str(tmp_path / "new")}):
        with pytest.raises(StageError, match=f"{tmp_path}/gone: "):
            job.run(given("masks", **more))
    with caplog.at_level("INFO"):
        assert isinstance(job.run(given("whole", dry_run=True)), job.DryRun)
    assert "has no token weights, so there is nothing to carry over" in caplog.text


def copy_selection(source: Path, target: Path) -> Path:
    """A selection of its own; returns its record."""
    copy_outputs(source, target, "selection")
    return target / "selection.stage.json"
