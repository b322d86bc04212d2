"""The demo world's truth against the scores: the paper's Table 1 and Figure 2, in small."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.command import call
from tests.end_to_end.conftest import HELD_OUT_SEED, read_scores
from vig_ray.dataset.images import load_image
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, truth, world
from vig_ray.model.prompt import PromptImage
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.gain import sample_gain
from vig_ray.scoring.prepare import make_passes
from vig_ray.scoring.schema import scores_schema
from vig_ray.stage import read_stage
from vig_ray.tables.directories import rows_of

GOLDEN = Path(__file__).parent / "golden_scores.json"
GOLDEN_FAST = GOLDEN.with_name("golden_gains_fast.json")


@pytest.fixture(scope="module")
def known(held_out: Path) -> truth.Known:
    return truth.read(str(held_out))


def test_token_gain_separates_what_the_image_decides(known: truth.Known) -> None:
    print(f"AUROC with blur: {known.auroc():.4f}")
    assert known.auroc() >= 0.95


@pytest.mark.long
def test_blind_separates_it_too(local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first 250 of the held-out samples."""
    data = world.write(str(tmp_path / "data"), 250, HELD_OUT_SEED)
    line = ("--data", data, "--model", CHECKPOINT, "--out", str(tmp_path), "--reference", "blind")
    call("score", *line, "--workers", "1", "--prepare-workers", "1")
    blind = truth.read(str(tmp_path))
    with capsys.disabled():
        print(f"\nAUROC with blind: {blind.auroc():.4f}")
    assert blind.auroc() >= 0.9
    # VisNec's score is the same formula with the other reference: mean(reference loss) - mean(clean loss).
    for row in read_scores(tmp_path):
        if row["vig"] is not None:
            by_hand = np.mean(np.float64(row["clean_logprobs"])) - np.mean(np.float64(row["blind_logprobs"]))
            assert row["vig"] == pytest.approx(by_hand, abs=1e-6)


def test_matching_text_gains_and_mismatched_text_loses(known: truth.Known) -> None:
    matched, partial, wrong = (known.mean_sample_gain(kind) for kind in ("caption", "partial", "mismatched"))
    assert matched > partial > wrong
    assert wrong < 0


def test_what_needs_no_image_gains_nothing(known: truth.Known) -> None:
    assert abs(known.mean_sample_gain("knowledge")) <= 0.05


def test_auroc_is_the_share_of_rightly_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    gain, decided = np.round(rng.normal(size=60), 1), rng.random(60) < 0.4
    wins = [(a > b) + 0.5 * (a == b) for a in gain[decided] for b in gain[~decided]]
    empty = np.zeros(0)
    assert truth.Known(gain, decided, empty, empty, empty).auroc() == pytest.approx(np.mean(wins))


def test_truth_falls_on_the_tokens_it_names(held_out: Path, demo_formatter) -> None:
    """The words of the decided tokens, put together, are the decided words of the answers."""
    known_rows = [json.loads(line) for line in (held_out / "data" / "truth.jsonl").read_text().splitlines()]
    data = json.loads((held_out / "data" / "data.json").read_text())
    for row in read_scores(held_out)[:300]:
        number = int(row["sample_key"].rsplit("/", 1)[1])
        answers = [turn["value"] for turn in data[number]["conversations"] if turn["from"] == "gpt"]
        words = [answers[t][a:b] for t, spans in enumerate(known_rows[number]["decided"]) for a, b in spans]
        pieces = demo_formatter.tokenizer.convert_ids_to_tokens(row["token_ids"])
        marked = truth.decided_tokens(pieces, row["turn"], known_rows[number]["decided"])
        assert [piece.lstrip("▁") for piece, mark in zip(pieces, marked, strict=True) if mark] == words


def test_rows_have_the_columns_of_the_design_and_add_up(held_out: Path) -> None:
    rows = read_scores(held_out)
    assert len({row["sample_key"] for row in rows}) == len(rows) == 2000
    assert list(rows[0]) == scores_schema(["blur"]).names
    for row in rows:
        assert row["error"] is None
        assert row["num_answer_tokens"] == len(row["token_ids"]) == len(row["turn"])
        if row["source"] == "text":
            assert row["vig"] is None
            assert row["clean_logprobs"] is None
            assert row["clean_loss"] is None
            continue
        assert len(row["clean_logprobs"]) == len(row["blur_logprobs"]) == row["num_answer_tokens"]
        assert row["clean_loss"] == pytest.approx(-np.mean(np.float64(row["clean_logprobs"])), abs=1e-6)
        assert row["vig"] == pytest.approx(row["blur_loss"] - row["clean_loss"], abs=1e-9)
        ppl = [np.exp(-np.mean(np.float64(row[name]))) for name in ("clean_logprobs", "blur_logprobs")]
        assert row["vig"] == pytest.approx(np.log(ppl[1] / ppl[0]), abs=1e-6)


def test_counts_are_printed_and_add_up(held_out: Path) -> None:
    printed = (held_out / "printed.txt").read_text()
    counts = re.search(r"read ([\d,]+) = scored ([\d,]+) \+ text-only ([\d,]+) \+ failed ([\d,]+)", printed)
    assert counts
    read, scored, text_only, failed = (int(number.replace(",", "")) for number in counts.groups())
    assert read == scored + text_only + failed == 2000
    assert str(held_out / "scores") in printed
    assert "rows/s" in (held_out / "progress.txt").read_text()
    stage = read_stage(str(held_out / "scores"))
    assert stage is not None
    assert stage["complete"]
    assert stage["counts"]["read"] == 2000
    assert [reference["name"] for reference in stage["identity"]["references"]] == ["blur"]
    assert {"torch", "transformers", "ray", "vig_ray"} <= set(stage["versions"])


def test_golden_scores(held_out: Path) -> None:
    """Rewrite golden_scores.json (python -m tests.end_to_end.golden DIR) only when scores are meant to change."""
    golden = json.loads(GOLDEN.read_text())
    rows = {row["sample_key"]: row for row in read_scores(held_out)}
    assert len(golden) == 64
    for key, expected in golden.items():
        row = rows[key]
        assert row["token_ids"] == expected["token_ids"]
        for name in ("clean_logprobs", "blur_logprobs"):
            np.testing.assert_allclose(row[name], expected[name], atol=1e-5, rtol=0)
        assert row["vig"] == pytest.approx(expected["vig"], abs=1e-5)


def fast_gains(held_out: Path, formatter: Any, model: Any) -> dict[str, float]:
    """VIG of the golden samples with the fast blur, by their keys."""
    keys = list(json.loads(GOLDEN.read_text()))
    rows = rows_of(str(held_out / "samples"), keys, ["images", "conversation"])
    prompts = []
    for key in keys:
        images = [
            PromptImage(each["uri"], partial(load_image, each), formatter.preprocess) for each in rows[key]["images"]
        ]
        prompt = formatter.prompt([Turn(**turn) for turn in rows[key]["conversation"]], images)
        prompts += [one(prompt) for one in make_passes(("clean", "blur"), formatter)]
    logp = TorchEngine(model, formatter.collate).logprobs(prompts)
    return {key: sample_gain(*pair) for key, pair in zip(keys, zip(logp[::2], logp[1::2], strict=True), strict=True)}


def test_golden_gains_of_the_fast_blur(held_out: Path, demo_formatter: Any, demo_model: Any) -> None:
    """Recorded once, when the fast blur became the default; OpenCV's are `GOLDEN`."""
    recorded = json.loads(GOLDEN_FAST.read_text())
    found = fast_gains(held_out, demo_formatter, demo_model)
    assert found == pytest.approx(recorded, abs=1e-5)
    by_opencv = {key: row["vig"] for key, row in json.loads(GOLDEN.read_text()).items()}
    assert spearmanr([found[key] for key in by_opencv], list(by_opencv.values()))[0] > 0.999
