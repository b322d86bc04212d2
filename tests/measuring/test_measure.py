"""`vig measure`: each number against a plain forward, and the stage on Ray Data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.scoring.prompts import LONG, ask, picture
from tests.selection.made import copy_outputs, selected, write_selected
from vig_ray.errors import StageError
from vig_ray.measuring import job
from vig_ray.measuring.config import MeasureConfig
from vig_ray.measuring.measure import El2n, ModelMeasures, tried
from vig_ray.model.prompt import PromptError
from vig_ray.scoring.engines.target_logprobs import TargetLogProbs
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.selection import job as selection
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import read_stage


def test_el2n_is_the_norm_of_the_whole_softmax_less_the_answer(demo_model: Any, demo_formatter: Any) -> None:
    measures = ModelMeasures(demo_model, demo_formatter.collate)
    images = [picture(number, demo_formatter) for number in (1, 2)]
    prompts = [ask(demo_formatter, answer, images[at]) for at, answer in ((0, LONG), (1, "Red."), (0, "Red square."))]
    together = El2n(TorchEngine(demo_model, demo_formatter.collate))(prompts)
    for prompt, by_engine in zip(prompts, together, strict=True):
        ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None]
        pixels = demo_formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float32)
        with torch.no_grad():
            logits = demo_model(input_ids=ids, **pixels, use_cache=False).logits[0].double().numpy()
        norms = []
        for place in prompt.answer_positions:
            p = np.exp(logits[place - 1] - logits[place - 1].max())
            p /= p.sum()
            p[prompt.token_ids[place]] -= 1.0
            norms.append(np.sqrt((p**2).sum()))
        found = measures(prompt)
        assert found["el2n"] == pytest.approx(np.mean(norms), abs=1e-5)
        assert not isinstance(by_engine, PromptError)
        assert by_engine["el2n"] == pytest.approx(found["el2n"], abs=1e-6)
        assert found["attention"].shape == prompt.answer_positions.shape
        assert 0 < found["attention"].max() < 1


def test_what_fails_beside_others_fails_alone() -> None:
    def halved(numbers: Sequence[int]) -> list[float]:
        return [1 / number for number in numbers]

    *found, failed, last = tried(halved, [1, 2, 4, 0, 8])
    assert [*found, last] == [1, 0.5, 0.25, 0.125]
    assert isinstance(failed, ZeroDivisionError)
    assert tried(halved, []) == []


def test_norms_do_not_depend_on_the_slices_of_the_head(demo_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(7, demo_model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(7)
    whole = TargetLogProbs(demo_model).error_norms(states, targets)
    monkeypatch.setattr("vig_ray.scoring.engines.target_logprobs._LOGITS_AT_ONCE", 1)
    torch.testing.assert_close(TargetLogProbs(demo_model).error_norms(states, targets), whole)
    assert TargetLogProbs(demo_model).error_norms(states[:0], targets[:0]).shape == (0,)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, demo_model: Any, demo_formatter: Any) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    write_selected(folder, demo_model, demo_formatter, samples=40, p=60)
    return folder


def test_the_stage_measures_every_sample_and_select_takes_it(
    scored: Path, tmp_path: Path, clip_checkpoint: str, demo_model: Any, demo_formatter: Any, local_ray: None
) -> None:
    copy_outputs(scored, tmp_path, "samples", "scores")
    options = {"scores": str(tmp_path), "out": str(tmp_path), "clip_model": clip_checkpoint, "workers": "1"}
    found = job.run(MeasureConfig(**options, rows_per_file=16))
    scores = pd.read_parquet(tmp_path / "scores").set_index("sample_key")
    measures = pd.read_parquet(tmp_path / "measures").set_index("sample_key")
    text_only = int(scores["vig"].isna().sum())
    assert (found.read, found.text_only, found.failed) == (40, text_only, 0)
    assert found.measured + text_only == 40
    for key, row in measures.iterrows():
        if np.isnan(scores.loc[key, "vig"]):
            assert row.drop("error").isna().all()
            continue
        assert row["answer_ids"].tolist() == scores.loc[key, "token_ids"].tolist()
        assert len(row["attention"]) == len(row["clip"]) == row["measured_tokens"]
        assert 0 < row["el2n"] < 2**0.5
    assert job.run(MeasureConfig(**options, rows_per_file=16)).text() == found.text()  # nothing to do
    with pytest.raises(StageError, match="another run of `vig measure`"):
        job.run(MeasureConfig(**options, measures="el2n"))
    kept = selection.run(SelectConfig(scores=str(tmp_path), out=str(tmp_path / "a"), strategy="attention"))
    assert len(selected(tmp_path / "a")) == 40
    assert kept.read.total("unmeasured") == 0
    for row in selected(tmp_path / "a"):
        share = measures.loc[row["sample_key"], "attention"]
        if share is not None:
            np.testing.assert_allclose(row["token_weights"], len(share) * share / share.sum(), rtol=1e-4)
    few = selection.run(SelectConfig(scores=str(tmp_path), out=str(tmp_path / "b"), strategy="clip-score", r=50))
    best = measures["clip_score"].dropna().sort_values(ascending=False)
    least = best.iloc[int(len(best) * 0.5) - 1]
    assert few.kept[0].counted.total("scored") == (best >= least).sum()
    assert ("are of their beginnings" in few.text() or "is of their beginnings" in few.text()) == (found.cut > 0)


def test_wrong_inputs_are_one_line_before_any_work(scored: Path, tmp_path: Path, qwen_checkpoint: str) -> None:
    def refused(told: str, **options: Any) -> None:
        with pytest.raises(StageError, match=told) as failed:
            job.run(MeasureConfig(**{"scores": str(scored), "out": str(tmp_path), **options}))
        assert "\n" not in str(failed.value)
        assert not (tmp_path / "measures").exists()

    refused("no scores here", scores=str(tmp_path))
    refused("aren't those that .* were made with", model=qwen_checkpoint)
    refused("--clip-model", clip_model=str(tmp_path / "nowhere"))
    refused("no samples here", samples=str(tmp_path))
    with pytest.raises(ValueError, match="takes one value"):
        MeasureConfig(scores="s", out="o", measures="")
    assert MeasureConfig(scores="s", out="o", measures="clip,el2n").measures == ("el2n", "clip")
    assert (read_stage(str(scored / "scores")) or {})["complete"]
