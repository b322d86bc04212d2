"""The text pass, from samples to PRIOR's weights: every log-prob is that of a plain forward of the language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny_models
from tests.selection.made import copy_outputs, selected
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.model.prompt import PromptImage
from vig_ray.scoring import in_process, job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.selection import job as selection
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import read_stage

SAMPLES = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Demo samples: one whose image has gone, one without answers, text-only ones, and emoji in an answer."""
    path = world.write(str(tmp_path_factory.mktemp("world")), SAMPLES, 5)
    rows = json.loads(Path(path).read_text())
    rows[3]["image"] = "images/gone.png"
    rows[4]["conversations"] = []
    rows[5]["conversations"][1]["value"] = "A red 😀 circle, où?"
    Path(path).write_text(json.dumps(rows))
    assert any("image" not in row for row in rows)
    assert any(len(row["conversations"]) > 2 for row in rows)
    return path


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "lm"
    return tiny_models.write_language_model(str(folder), AutoTokenizer.from_pretrained(CHECKPOINT))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With a tokenizer of its own, which has no BOS."""
    tokenizer = tiny_models.byte_level(["<|end|>"], eos="<|end|>")
    return tiny_models.write_language_model(
        str(tmp_path_factory.mktemp("models") / "other"), tokenizer, "qwen2", seed=1
    )


def config(data: str, out: Path, **options: Any) -> ScoreConfig:
    return ScoreConfig(**{"data": data, "model": CHECKPOINT, "out": str(out)} | options)


def score(data: str, out: Path, **options: Any) -> Any:
    return job.run(config(data, out, **options), in_process=True)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {row["sample_key"]: row for row in pq.read_table(out / "scores").to_pylist()}


def record(out: Path) -> dict[str, Any]:
    return read_stage(str(out / "scores")) or {}


class Plain:
    """A language model's log-probs of answers, by its own tokenizer and forward alone."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def __call__(self, turns: list[dict[str, str]], context: str = "answer") -> tuple[list[int], list[float]]:
        """Ids and log-probs of the tokens of all answers and the ends behind them."""
        own = self.tokenizer
        ids, places = [own.eos_token_id if own.bos_token_id is None else own.bos_token_id], []
        for turn in turns:
            if turn["from"] == "gpt":
                said = [*own(turn["value"], add_special_tokens=False)["input_ids"], own.eos_token_id]
                places += range(len(ids), len(ids) + len(said))
                ids += said
            elif context == "conversation":
                asked = turn["value"].replace("<image>", "").strip() + "\n"
                ids += own(asked, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = torch.log_softmax(self.model(torch.tensor([ids])).logits[0], dim=-1)
        return [ids[place] for place in places], [float(logp[place - 1, ids[place]]) for place in places]


def conversations(data: str) -> dict[str, list[dict[str, str]]]:
    return {f"data/{n:010d}": row["conversations"] for n, row in enumerate(json.loads(Path(data).read_text()))}


@pytest.fixture(scope="module")
def blurred(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished scores without a text pass. Not to be changed."""
    out = tmp_path_factory.mktemp("blurred")
    score(data, out)
    return out


@pytest.fixture(scope="module")
def alone(data: str, language_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text pass alone. Not to be changed."""
    out = tmp_path_factory.mktemp("alone")
    summary = score(data, out, passes="text", reference_model=language_model)
    assert summary.read == SAMPLES == summary.scored + summary.text_only + summary.failed
    assert (summary.failed, summary.text_pass.samples) == (1, summary.scored)
    assert "text pass: mean loss" in summary.text()
    assert "exactly" not in summary.text()
    assert "VIG" not in summary.text()
    return out


def test_the_pass_is_added_to_finished_scores(data: str, blurred: Path, language_model: str, tmp_path: Path) -> None:
    copy_outputs(blurred, tmp_path, "samples", "scores")
    summary = score(data, tmp_path, reference="text", reference_model=language_model)
    before, after, plain, compared = rows(blurred), rows(tmp_path), Plain(language_model), 0
    for key, turns in conversations(data).items():
        row = after[key]
        assert {name: row[name] for name in before[key]} == before[key]
        assert (row["text_loss"] is None) == (row["vig"] is None)
        if row["text_loss"] is None:
            continue
        ids, logp = plain(turns)
        assert row["token_ids"] == ids  # this model's end of turn is its end of text
        np.testing.assert_allclose(row["text_logprobs"], logp, atol=1e-5 * max(1, -min(logp) / 10))
        assert row["text_loss"] == pytest.approx(-np.mean(row["text_logprobs"]), abs=1e-6)
        assert row["text_exact"] == len(ids)
        compared += 1
    assert compared == summary.scored == summary.text_pass.samples > SAMPLES // 2
    told = record(tmp_path)
    assert [each["name"] for each in told["identity"]["references"]] == ["blur", "text"]
    assert told["config"]["reference_model"] == language_model
    assert (told["identity"]["references"][1]["parameters"]["context"], told["gains"]["text_pass"]["samples"]) == (
        "answer",
        compared,
    )
    # Given again there is nothing to do; another context is another pass.
    files = sorted(path.name for path in (tmp_path / "scores").iterdir())
    score(data, tmp_path, reference="blur,text", reference_model=language_model)
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == files
    with pytest.raises(StageError, match=r"holds another run of `vig score` \(references differ\)"):
        score(data, tmp_path, reference="text", reference_model=language_model, reference_context="conversation")
    # A further reference leaves the pass, and what the record says of it, as they are.
    score(data, tmp_path, reference="blind")
    assert record(tmp_path)["config"]["reference_model"] == language_model
    for key, row in rows(tmp_path).items():
        assert {name: row[name] for name in after[key]} == after[key]


def test_at_once_it_is_the_same(data: str, blurred: Path, language_model: str, tmp_path: Path) -> None:
    """Three orders of asking, the same rows; without another reference, vig is the text pass's."""
    score(data, tmp_path / "both", reference="text,blur", reference_model=language_model)
    copy_outputs(blurred, tmp_path / "added", "samples", "scores")
    score(data, tmp_path / "added", reference="text", reference_model=language_model)
    assert rows(tmp_path / "both") == rows(tmp_path / "added")
    score(data, tmp_path / "text", reference="text", reference_model=language_model)
    assert [each["name"] for each in record(tmp_path / "text")["identity"]["references"]] == ["text"]
    for key, row in rows(tmp_path / "text").items():
        both = rows(tmp_path / "both")[key]
        for name in ("text_logprobs", "text_loss", "text_exact", "token_ids", "error"):
            assert row[name] == both[name]
        # float32 tells losses of this size apart by 1e-6 and no less
        assert row["clean_loss"] == (both["clean_loss"] and pytest.approx(both["clean_loss"], rel=1e-6, abs=1e-6))
        if row["vig"] is not None:
            assert row["vig"] == row["text_loss"] - row["clean_loss"]
    # With another text pass asked for, all is replaced, but only where that is said.
    options = {"reference": "blur,text", "reference_model": language_model, "reference_context": "conversation"}
    with pytest.raises(StageError, match="references differ"):
        score(data, tmp_path / "both", **options)
    score(data, tmp_path / "both", overwrite=True, **options)
    plain = Plain(language_model)
    for key, turns in conversations(data).items():
        if (found := rows(tmp_path / "both")[key]["text_logprobs"]) is not None:
            np.testing.assert_allclose(found, plain(turns, "conversation")[1], rtol=1e-5, atol=1e-5)


def test_alone_no_image_is_opened(data: str, alone: Path, blurred: Path, language_model: str) -> None:
    """Even a sample whose image has gone is scored; nothing else differs from a run with all passes."""
    plain, others = Plain(language_model), rows(blurred)
    for key, turns in conversations(data).items():
        row = rows(alone)[key]
        assert (row["clean_loss"], row["clean_logprobs"], row["vig"]) == (None, None, None)
        if row["text_loss"] is not None:
            np.testing.assert_allclose(row["text_logprobs"], plain(turns)[1], rtol=1e-5, atol=1e-5)
        if key == "data/0000000003":
            assert others[key]["error"].startswith("FileNotFoundError")
            assert row["text_loss"] is not None
            continue
        for name in ("id", "source", "num_answer_tokens", "token_ids", "turn", "note", "num_truncated_tokens"):
            assert row[name] == others[key][name]
        assert (row["error"] is None) == (others[key]["error"] is None)
        assert (row["text_loss"] is None) == (others[key]["vig"] is None)


def weights_by_hand(logp: list[float], alpha: float) -> list[float]:
    """Equations 3 and 4: w = (1 - p)^alpha, times k / sum of w."""
    w = [(1 - np.exp(each)) ** alpha for each in logp]
    return [len(w) * each / sum(w) for each in w]


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_prior_weighs_by_it(alone: Path, tmp_path: Path, alpha: float) -> None:
    selection.run(SelectConfig(scores=str(alone), out=str(tmp_path), strategy="prior", alpha=alpha))
    scored = rows(alone)
    found = selected(tmp_path)
    assert {row["sample_key"] for row in found} == {key for key, row in scored.items() if row["error"] is None}
    for row in found:
        of = scored[row["sample_key"]]
        assert row["token_ids"] == of["token_ids"]
        expected = [1.0] * len(of["token_ids"])
        if of["text_logprobs"] is not None:
            expected = weights_by_hand(of["text_logprobs"], alpha)
        np.testing.assert_allclose(row["token_weights"], expected, rtol=1e-5)


def test_what_needs_gains_refuses_a_text_pass_alone(alone: Path, data: str, tmp_path: Path) -> None:
    from vig_ray.report import inspect, top

    for strategy in ("vig", "full", "visnec", "random", "clean-loss"):
        with pytest.raises(StageError, match=r"hold the text pass alone \(--passes text\) and no gains"):
            selection.check(SelectConfig(scores=str(alone), out=str(tmp_path), strategy=strategy))  # type: ignore[arg-type]
    with pytest.raises(StageError, match="no gains"):
        top.run(top.TopConfig(scores=str(alone)))
    with pytest.raises(StageError, match="no gains"):
        inspect.run(inspect.InspectConfig(scores=str(alone), key="data/0000000000"))
    with pytest.raises(StageError, match=r"holds another run of `vig score` \(.*passes.* differ\)"):
        score(data, alone, reference="blur")


def test_another_tokenizer_is_refused_or_carried_over(data: str, other_model: str, tmp_path: Path) -> None:
    options = {"passes": "text", "reference_model": other_model}
    with pytest.raises(StageError, match=r"its tokenizer isn't that of .*--align characters carries its"):
        score(data, tmp_path / "refused", **options)
    summary = score(data, tmp_path, align="characters", **options)
    plain, exact, tokens = Plain(other_model), 0, 0
    for key, turns in conversations(data).items():
        row = rows(tmp_path)[key]
        if row["text_logprobs"] is None:
            continue
        _, logp = plain(turns)
        assert len(row["text_logprobs"]) == len(row["token_ids"])
        assert sum(row["text_logprobs"]) == pytest.approx(sum(logp), rel=1e-5)
        # Each end is the other's end.
        ends = [place for place, token in enumerate(row["token_ids"]) if token == 2]
        theirs = [place for place, token in enumerate(plain(turns)[0]) if token == plain.tokenizer.eos_token_id]
        np.testing.assert_allclose([row["text_logprobs"][place] for place in ends], [logp[place] for place in theirs],
                                   rtol=1e-5, atol=1e-5)  # fmt: skip
        exact += row["text_exact"]
        tokens += len(row["token_ids"])
    assert (summary.text_pass.exact, summary.text_pass.tokens) == (exact, tokens)
    assert 0 < exact < tokens
    assert f"{100 * exact / tokens:.2f} % of {tokens:,} log-probs carried over exactly" in summary.text()
    assert record(tmp_path)["gains"]["text_pass"]["exact"] == exact


def test_the_same_tokenizer_needs_no_carrying(data: str, alone: Path, language_model: str, tmp_path: Path) -> None:
    score(data, tmp_path, passes="text", reference_model=language_model, align="characters")
    assert rows(tmp_path) == rows(alone)


def test_a_cut_off_answer_keeps_what_is_left(
    data: str, language_model: str, demo_formatter: Any, tmp_path: Path
) -> None:
    """The text pass alone cuts where the clean pass does: a LLaVA's images are all as long."""
    lengths = []
    for turns in conversations(data).values():
        said = [Turn({"human": "user", "gpt": "assistant"}[turn["from"]], turn["value"]) for turn in turns]
        images = [PromptImage("", lambda: np.zeros(0), lambda _: {})] * sum("<image>" in turn.text for turn in said)
        lengths += [len(demo_formatter.prompt(said, images).token_ids)] if said else []
    options = {"max_length": max(lengths) - 15, "too_long": "truncate", "reference_model": language_model}
    score(data, tmp_path / "all", reference="blur,text", **options)
    score(data, tmp_path / "alone", passes="text", **options)
    plain, cut = Plain(language_model), 0
    for key, turns in conversations(data).items():
        row, of_alone = rows(tmp_path / "all")[key], rows(tmp_path / "alone")[key]
        if row["text_logprobs"] is None:
            continue
        assert row["token_ids"] == of_alone["token_ids"]
        assert row["text_logprobs"] == pytest.approx(of_alone["text_logprobs"], rel=1e-5, abs=1e-5)
        np.testing.assert_allclose(row["text_logprobs"], plain(turns)[1][: len(row["token_ids"])], rtol=1e-5, atol=1e-5)
        cut += row["num_truncated_tokens"] > 0
    assert cut


def test_an_image_costs_the_text_pass_nothing(
    data: str, language_model: str, demo_formatter: Any, tmp_path: Path
) -> None:
    """A sample whose image the limit has cut off has none, whenever the pass is made; and images that have gone since,
    or whose files are cut off, aren't opened."""
    folder = Path(shutil.copytree(Path(data).parent, tmp_path / "world"))
    changed = json.loads((folder / Path(data).name).read_text())[:8]
    said = ["Say it. " * 30, "Yes.", "<image>\nWhich colour?", "Red."]
    roles = ("human", "gpt", "human", "gpt")
    changed[0] |= {"image": changed[6]["image"], "conversations": [
        {"from": role, "value": text} for role, text in zip(roles, said, strict=True)
    ]}  # fmt: skip
    (folder / Path(data).name).write_text(json.dumps(changed))
    turns = [Turn({"human": "user", "gpt": "assistant"}[role], text) for role, text in zip(roles, said, strict=True)]
    whole = demo_formatter.prompt(turns, [PromptImage("", lambda: np.zeros(0), lambda _: {})])
    limit = int(whole.image_spans[0, 1]) - 1
    options = {"max_length": limit, "too_long": "truncate"}
    given = str(folder / Path(data).name)
    score(given, tmp_path / "added", **options)
    before = rows(tmp_path / "added")
    options |= {"reference_model": language_model}
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        path.write_bytes(path.read_bytes()[:99]) if number % 2 else path.unlink()
    score(given, tmp_path / "added", reference="text", **options)
    score(given, tmp_path / "alone", passes="text", **options)
    added, alone = rows(tmp_path / "added"), rows(tmp_path / "alone")
    cut = added["data/0000000000"]
    assert (len(cut["token_ids"]), cut["num_truncated_tokens"]) == (3, 6)
    for key, row in added.items():
        assert {name: row[name] for name in before[key]} == before[key]
        if key != "data/0000000003":  # whose image was never there
            assert (row["text_loss"] is None) == (row["vig"] is None) == (alone[key]["text_loss"] is None)
            assert alone[key]["error"] == row["error"]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_an_end_of_turn_is_scored_as_the_end_of_a_text(
    data: str, qwen_checkpoint: str, tmp_path: Path, end: str
) -> None:
    """A model by its chat template, whose end of turn is the language model's end, or another token than that."""
    tokenizer = AutoTokenizer.from_pretrained(qwen_checkpoint)
    tokenizer.eos_token = end
    folder = tiny_models.write_language_model(str(tmp_path / "lm"), tokenizer, "qwen2")
    options = {"model": qwen_checkpoint, "passes": "text", "reference_model": folder}
    with pytest.raises(
        StageError, match=r"--too-long truncate: where .* cuts a prompt depends on the sizes of its images"
    ):
        score(data, tmp_path / "out", too_long="truncate", **options)
    summary = score(data, tmp_path / "out", **options)
    plain, compared = Plain(folder), 0
    for key, turns in conversations(data).items():
        row = rows(tmp_path / "out")[key]
        if row["text_logprobs"] is None:
            continue
        ids, logp = plain(turns)
        of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert row["token_ids"] == [of_turn if token == plain.tokenizer.eos_token_id else token for token in ids]
        np.testing.assert_allclose(row["text_logprobs"], logp, rtol=1e-5, atol=1e-5)
        compared += 1
    assert compared == summary.scored > SAMPLES // 2


def test_a_killed_pass_goes_on(
    data: str, blurred: Path, language_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_outputs(blurred, tmp_path, "samples", "scores")
    options: Mapping[str, Any] = {"reference": "blur,text", "reference_model": language_model, "rows_per_file": 8}
    called, blocks = in_process._called, []

    def killed(actor: Any, block: Any, count: int) -> Any:
        if type(actor).__name__ == "TextPreparer":
            blocks.append(block["sample_key"].to_pylist())
            if len(blocks) == 2:
                raise KeyboardInterrupt
        return called(actor, block, count)

    monkeypatch.setattr(in_process, "_called", killed)
    with pytest.raises(KeyboardInterrupt):
        score(data, tmp_path, **options)
    assert list(job.references_of(record(tmp_path))) == ["blur"]  # readers have what was there
    score(data, tmp_path, **options)
    assert not set(blocks[0]) & {key for block in blocks[2:] for key in block}
    assert len(rows(tmp_path)) == SAMPLES
    assert [each["name"] for each in record(tmp_path)["identity"]["references"]] == ["blur", "text"]


@pytest.mark.long
def test_by_ray_it_is_the_same(data: str, alone: Path, language_model: str, tmp_path: Path, local_ray: None) -> None:
    given = {"reference_model": language_model, "workers": "1", "prepare_workers": "1"}
    job.run(config(data, tmp_path, reference="text", **given))
    for key, row in rows(tmp_path).items():
        of_alone = rows(alone)[key]["text_logprobs"]
        if row["error"] is None:
            assert row["text_logprobs"] == (of_alone and pytest.approx(of_alone, rel=1e-5, abs=1e-5))


def test_gains_are_of_no_other_model(alone: Path, tmp_path: Path) -> None:
    for strategy in ("vig", "top"):
        with pytest.raises(StageError, match=r"gain|VIG|clean"):
            selection.run(SelectConfig(scores=str(alone), out=str(tmp_path), strategy=strategy))
