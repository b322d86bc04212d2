"""`--calibrate` against pandas: what other images gain in each group, and gains, thresholds and tokens without it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.selection.made import made_up, selected, write
from tests.selection.test_select import keys, scored, select, text_only
from vig_ray.errors import StageError
from vig_ray.scoring.schema import scores_schema
from vig_ray.selection import calibrate
from vig_ray.selection.within import Within
from vig_ray.tables.passes import View

K = 3
REFERENCES = ["blur", "marginal", "swap"]


def marginal(logp_KT: Any) -> tuple[list[float], float]:
    """The log of the mean probability of each token, and the loss of the answer as a whole, by plain numpy."""
    of_answers = logp_KT.sum(1)
    return np.log(np.exp(logp_KT).mean(0)).tolist(), -math.log(np.exp(of_answers).mean()) / logp_KT.shape[1]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Few token ids, whose gains lean by the token and by the source, whatever the image."""
    rng = np.random.default_rng(4)
    found = made_up(3000, answer=6)
    for row in found:
        if not row["clean_logprobs"]:
            continue
        ids = rng.integers(0, 6, len(row["token_ids"]))
        lean = 0.3 * ids + {"coco": 0.0, "vg": 0.7, None: -0.4}[row["source"]]
        blur = np.asarray(row["blur_logprobs"])
        others = blur + lean + rng.normal(0, 0.1, (K + 1, len(ids))) - 2.0
        losses = -others.mean(1)
        tokens, loss = marginal(others[:K])
        leave_out = [[(others[k] - np.log(np.exp(np.delete(others[:K], k, 0)).mean(0))).tolist()] for k in range(K)]
        row |= {
            "token_ids": ids.tolist(),
            "marginal_logprobs": tokens,
            "marginal_loss": loss,
            "marginal_losses": losses[:K].tolist(),
            "marginal_means": others[:K].mean(0).tolist(),
            "marginal_null": np.mean(leave_out, axis=0)[0].tolist(),
            "marginal_error": 0.0,
            "swap_logprobs": others[K].tolist(),
            "swap_loss": losses[K],
        }
    return found


@pytest.fixture(scope="module")
def scores(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("made"), rows, references=REFERENCES)


def calibrated(rows: list[dict[str, Any]], by: Any, reference: str, null: str, least: int = 10) -> pd.DataFrame:
    """Gains and nulls of the scored rows by pandas."""
    table = pd.DataFrame({"key": [row["sample_key"] for row in rows], "group": [str(by(row)) for row in rows]})
    table["gain"] = [row[f"{reference}_loss"] - row["clean_loss"] for row in rows]
    if reference == null == "marginal":
        table["null"] = [
            np.mean([
                -math.log(np.mean([math.exp(-loss * row["num_answer_tokens"]) for loss in np.delete(losses, k)]))
                / row["num_answer_tokens"] - losses[k]
                for k in range(K)
            ])
            for row in rows for losses in [row["marginal_losses"]]
        ]  # fmt: skip
    else:
        table["null"] = [
            row[f"{reference}_loss"] - (row["swap_loss"] if null == "swap" else np.mean(row["marginal_losses"]))
            for row in rows
        ]
    of_group = table.groupby("group")["null"].transform("mean")
    few = table.groupby("group")["null"].transform("size") < least
    table["calibrated"] = table["gain"] - of_group.where(~few, table["null"].mean())
    return table


BY = {
    "source": lambda row: row["source"],
    "source,answer": lambda row: (
        row["source"],
        row["token_ids"] if len(row["token_ids"]) <= 8 else row["token_ids"][0],
    ),
}


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize(
    ("reference", "null"), [("blur", "swap"), ("blur", "marginal"), ("marginal", "marginal"), ("marginal", "swap"),
                            ("swap", "marginal")],
)  # fmt: skip
def test_the_greatest_of_what_is_left(
    by: str, reference: str, null: str, scores: str, rows: Any, tmp_path: Path
) -> None:
    table = calibrated(scored(rows), BY[by], reference, null)
    found = select(scores, tmp_path, p=30, strategy="vig-samples", calibrate=by, null=null, reference=reference)
    many = math.floor(0.3 * len(table) + 1e-9)
    tau = table["calibrated"].nlargest(many).min()
    assert keys(selected(tmp_path)) == set(table[table["calibrated"] >= tau]["key"]) | keys(text_only(rows))
    assert found.kept[0].thresholds[""] == pytest.approx(tau)
    assert found.notes[0].startswith(f"calibrated by {null} within {by.replace(',', ', ')}: ")


@pytest.mark.parametrize("null", ["swap", "marginal"])
def test_tokens_are_calibrated_too(null: str, scores: str, rows: Any, tmp_path: Path) -> None:
    """Each by the mean of its id in its group: of several images by the mean of their log-probs, as samples are."""
    column = {"swap": "swap_logprobs", "marginal": "marginal_means"}[null]
    found = select(scores, tmp_path, p=50, calibrate="source", null=null)
    tokens = pd.DataFrame([
        {"key": row["sample_key"], "source": str(row["source"]), "id": token, "gain": clean - blur,
         "null": other - blur}
        for row in scored(rows)
        for token, clean, blur, other in zip(
            row["token_ids"], row["clean_logprobs"], row["blur_logprobs"], row[column], strict=True
        )
    ])  # fmt: skip
    tokens["calibrated"] = tokens["gain"] - tokens.groupby(["source", "id"])["null"].transform("mean")
    assert tokens.groupby(["source", "id"]).size().min() >= calibrate.TOKENS_LEAST
    by_key = {key: part["calibrated"].tolist() for key, part in tokens.groupby("key")}
    (tau,) = found.kept[0].thresholds.values()
    for row in selected(tmp_path):
        if row["sample_key"] in by_key:
            near = [abs(gain - tau) < 1e-6 for gain in by_key[row["sample_key"]]]
            told = zip(row["token_weights"], by_key[row["sample_key"]], near, strict=True)
            assert all(close or bool(weight) == (gain >= tau) for weight, gain, close in told)


def test_the_null_of_tokens_is_that_of_their_samples(rows: Any) -> None:
    """Weighed by their tokens, samples' nulls are tokens' nulls, whosever other images they come from."""
    table = pa.Table.from_pylist(scored(rows), schema=scores_schema(REFERENCES))
    table = View.of({"identity": {"references": [{"name": name} for name in REFERENCES]}}, "").table(
        table, [*table.column_names, "reference_loss", "reference_logprobs"]
    )
    for null in ("swap", "marginal"):
        summed = calibrate.Summed(Within(("source",)), "blur", null, True, 0)  # type: ignore[arg-type]
        _, in_group, of_id = summed(table)
        of_samples = summed._of_samples(table) * table["num_answer_tokens"].to_numpy()
        assert in_group.sums.sum() == pytest.approx(of_samples.sum(), rel=1e-5)
        assert of_id.sums.sum() == pytest.approx(of_samples.sum(), rel=1e-5)


@pytest.mark.parametrize("null", ["swap", "marginal"])
@pytest.mark.parametrize("strategy", ["vig", "vig-samples"])
def test_files_without_a_scored_row(null: str, strategy: str, rows: Any, scores: str, tmp_path: Path) -> None:
    """As an order by image leaves them: text-only samples and bad rows last."""
    for reference in ("blur", "marginal"):
        last = [*scored(rows), *(row for row in rows if row["vig"] is None)]
        made = write(tmp_path / reference, last, files=12, references=REFERENCES)
        options: dict[str, Any] = {"p": 50, "calibrate": "source", "null": null, "strategy": strategy}
        select(made, tmp_path / f"{reference}-out", reference=reference, **options)
        select(scores, tmp_path / f"{reference}-as-it-was", reference=reference, **options)
        assert keys(selected(tmp_path / f"{reference}-out")) == keys(selected(tmp_path / f"{reference}-as-it-was"))


def test_few_tokens_have_the_null_of_their_id_and_then_of_their_group(
    scores: str, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no id is there often enough all of a group's tokens have its null."""
    monkeypatch.setattr(calibrate, "TOKENS_LEAST", 10**9)
    found = select(scores, tmp_path / "group", p=50, calibrate="source")
    table = calibrated(scored(rows), BY["source"], "blur", "swap").set_index("key")
    (tau,) = found.kept[0].thresholds.values()
    by_key = {row["sample_key"]: row for row in rows}
    for row in selected(tmp_path / "group"):
        of = by_key[row["sample_key"]]
        if of["clean_logprobs"]:
            null = table.loc[row["sample_key"], "gain"] - table.loc[row["sample_key"], "calibrated"]
            gains = np.subtract(of["clean_logprobs"], of["blur_logprobs"]) - null
            assert all(
                abs(gain - tau) < 1e-6 or bool(weight) == (gain >= tau)
                for weight, gain in zip(row["token_weights"], gains, strict=True)
            )


def test_tokens_few_in_their_group_have_the_null_of_their_id(
    scores: str, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TOKENS_LEAST", 800)  # more than of any source, fewer than in all
    found = select(scores, tmp_path, p=50, calibrate="source", null="swap")
    tokens = pd.DataFrame([
        {"key": row["sample_key"], "source": str(row["source"]), "id": token, "gain": clean - blur,
         "null": other - blur}
        for row in scored(rows)
        for token, clean, blur, other in zip(
            row["token_ids"], row["clean_logprobs"], row["blur_logprobs"], row["swap_logprobs"], strict=True
        )
    ])  # fmt: skip
    assert tokens.groupby(["source", "id"]).size().max() < 800 <= tokens.groupby("id").size().min()
    tokens["calibrated"] = tokens["gain"] - tokens.groupby("id")["null"].transform("mean")
    by_key = {key: part["calibrated"].tolist() for key, part in tokens.groupby("key")}
    (tau,) = found.kept[0].thresholds.values()
    for row in selected(tmp_path):
        for weight, gain in zip(row["token_weights"], by_key.get(row["sample_key"], ()), strict=False):
            assert abs(gain - tau) < 1e-6 or bool(weight) == (gain >= tau)


def test_the_null_that_is_taken_by_default_is_the_same_named(scores: str, tmp_path: Path) -> None:
    select(scores, tmp_path, p=50, calibrate="source")
    select(scores, tmp_path, p=50, calibrate="source", null="swap")  # another selection would be refused


def test_other_files_several_shares_and_within(scores: str, rows: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"within": "source", "calibrate": "answer", "seed": 3}
    select(scores, tmp_path / "one", p=40, **options)
    again = write(tmp_path / "cut", rows, files=7, references=REFERENCES)
    select(again, tmp_path / "cut", p=40, **options)
    assert keys(selected(tmp_path / "one")) == keys(selected(tmp_path / "cut"))
    several = select(scores, tmp_path / "several", p=(20, 40), **options)
    assert several.kept[1].counted.total("scored") == len(keys(selected(tmp_path / "one"))) - len(text_only(rows))


@pytest.mark.parametrize(
    ("references", "options", "told"),
    [
        (["blur"], {"calibrate": "source"}, "hold blur, and nothing of other images; the same `vig score` with "
                                             "--reference blur,swap adds them"),
        (["swap"], {"calibrate": "source"}, "--reference swap,marginal adds them"),
        (["swap", "marginal"], {"calibrate": "source", "null": "swap"}, "under --reference swap it gains nothing"),
        (["blur", "swap"], {"calibrate": "source", "null": "marginal"}, "hold blur, swap"),
        (["blur"], {"null": "swap"}, "--null: has no effect without --calibrate"),
        (["blur", "swap"], {"calibrate": "source", "strategy": "random"}, "--calibrate: has no effect with --strategy "
                                                                          "random, which doesn't rank by gain"),
        (["blur", "swap"], {"calibrate": "question"}, "no samples/ beside them; --calibrate question takes questions"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(
    references: list[str], options: dict[str, Any], told: str, rows: Any, tmp_path: Path
) -> None:
    made = write(tmp_path / "made", rows[:50], references=references)
    with pytest.raises(StageError) as caught:
        select(made, tmp_path / "out", **options)
    assert told in str(caught.value)
