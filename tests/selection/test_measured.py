"""Strategies that need more than the scores: measures, token counts, losses of answers alone; against plain loops."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.selection.made import IDENTITY, made_up, renamed, selected, write
from vig_ray.errors import StageError
from vig_ray.measuring.config import MeasureConfig
from vig_ray.measuring.schema import measures_schema
from vig_ray.selection import job
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.rank import difficulty
from vig_ray.stage import write_stage

EVERY = ("attention", "el2n", "clip", "clip-score")
Row = dict[str, Any]


def select(scores: str, out: Path, **options: Any) -> job.Selection:
    return job.run(SelectConfig(scores=scores, out=str(out), **options))


def keys(rows: list[Row]) -> set[str]:
    return {row["sample_key"] for row in rows}


def scored(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["vig"] is not None]


def text_only(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["vig"] is None and row["error"] is None]


def measured(rows: list[Row], seed: int = 0) -> dict[str, Row]:
    """Made-up measures of the scored rows, of which a few failed."""
    rng = np.random.default_rng(seed)
    schema = measures_schema(EVERY)
    found = {}
    for row in rows:
        made: Row = dict.fromkeys(schema.names) | {"sample_key": row["sample_key"], "error": row["error"]}
        if row["vig"] is not None and rng.random() < 0.05:
            made["error"] = "ImageError: broken"
        elif row["vig"] is not None:
            tokens = row["num_answer_tokens"]
            logits = rng.normal(22, 2, tokens)
            logits[-1] = np.nan
            made |= {"measured_tokens": tokens, "answer_ids": row["token_ids"], "el2n": rng.random()}
            made |= {"attention": rng.random(tokens).astype(np.float32), "clip": logits.astype(np.float32)}
            made |= {"clip_score": rng.random(), "clip_cut": int(rng.integers(2))}
        found[row["sample_key"]] = made
    return found


def write_measures(directory: Path, measures: dict[str, Row], *, names: Any = EVERY, **identity: Any) -> None:
    """Write them in another order and other files than the scores'."""
    rows = [measures[key] for key in np.random.default_rng(1).permutation(sorted(measures))]
    (directory / "measures").mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), 4)):
        table = pa.Table.from_pylist([rows[index] for index in part], schema=measures_schema(names))
        pq.write_table(table, directory / "measures" / f"{number}.parquet", row_group_size=41)
    told = IDENTITY | {"measures": list(names)} | identity
    cut = sum(bool(row.get("clip_cut")) for row in rows)
    config = MeasureConfig(scores="made", out=str(directory))
    write_stage(str(directory / "measures"), "measure", config, identity=told, complete=True, counts={"cut": cut})


@dataclasses.dataclass
class Made:
    rows: list[Row]
    measures: dict[str, Row]
    scores: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory, rows = tmp_path_factory.mktemp("made"), made_up(500, seed=4)
    measures = measured(rows)
    write_measures(directory, measures)
    return Made(rows, measures, write(directory, rows))


@pytest.mark.parametrize(("strategy", "column"), [("clip-score", "clip_score"), ("el2n", "el2n")])
def test_the_top_of_a_measure(made: Made, tmp_path: Path, strategy: Any, column: str) -> None:
    found = select(made.scores, tmp_path, strategy=strategy, r=15)
    values = {key: row[column] for key, row in made.measures.items() if row[column] is not None}
    least = sorted(values.values(), reverse=True)[int(len(values) * 0.15) - 1]
    expected = {key for key, value in values.items() if value >= least}
    assert keys(selected(tmp_path)) == expected | keys(text_only(made.rows))
    assert found.kept[0].thresholds == {"": least}
    lacking = sum(made.measures[row["sample_key"]]["measured_tokens"] is None for row in scored(made.rows))
    assert lacking > 5
    assert f"{lacking} scored samples lack what the strategy needs and are left out" in found.text()
    assert ("more tokens than CLIP takes" in found.text()) == (strategy == "clip-score")
    assert select(made.scores, tmp_path, strategy=strategy, r=15).text() == found.text()  # from the record
    assert all(row["token_weights"] is None for row in selected(tmp_path))


@pytest.mark.parametrize("total", ["tokens", "one"])
@pytest.mark.parametrize("strategy", ["attention", "clip"])
def test_weights_of_a_measure(made: Made, tmp_path: Path, strategy: Any, total: Any) -> None:
    select(made.scores, tmp_path, strategy=strategy, alpha=0.5, weights_sum=total)
    rows = {row["sample_key"]: row for row in made.rows}
    chosen = selected(tmp_path)
    usable = {key for key, row in made.measures.items() if row["measured_tokens"] is not None}
    assert keys(chosen) == usable | keys(text_only(made.rows))
    for row in chosen:
        tokens = rows[row["sample_key"]]["num_answer_tokens"]
        expected = np.ones(tokens)
        if row["sample_key"] in usable:
            value = np.asarray(made.measures[row["sample_key"]][strategy], dtype=np.float64)
            told = np.isfinite(value)
            w = np.sqrt(value[told]) if strategy == "attention" else np.exp(0.5 * (value[told] - 22))
            expected[told] = told.sum() * w / w.sum() if told.any() else 1.0
        expected /= tokens if total == "one" else 1
        np.testing.assert_allclose(row["token_weights"], expected, rtol=1e-4)
        assert sum(row["token_weights"]) == pytest.approx(1.0 if total == "one" else tokens, rel=1e-4)


def test_prior_without_its_factor(made: Made, tmp_path: Path) -> None:
    select(made.scores, tmp_path, strategy="prior", weights_sum="one")
    rows = {row["sample_key"]: row for row in made.rows}
    for row in selected(tmp_path):
        w = rows[row["sample_key"]]["blur_logprobs"]
        if w is not None:
            w = 1 - np.exp(np.float64(w))
            np.testing.assert_allclose(row["token_weights"], w / w.sum() if w.sum() else 1 / len(w), rtol=1e-4)
        assert sum(row["token_weights"]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("given", [True, False])
def test_rare_words_by_the_answers_own_counts_or_by_a_file(made: Made, tmp_path: Path, given: bool) -> None:
    own = collections.Counter(token for row in made.rows for token in row["token_ids"] or ())
    corpus = {token: 7 * token + 1 for token in range(0, 500, 3)}  # lacks two of three
    if given:
        (tmp_path / "counts.txt").write_text("\n".join(f"{token}\t{count}" for token, count in corpus.items()) + "\n\n")
    counts = corpus if given else own
    file = {"counts": str(tmp_path / "counts.txt")} if given else {}
    found = select(made.scores, tmp_path, strategy="rare", **file)
    assert f"{sum(counts.values()):,} tokens of {len(counts):,} kinds" in found.text()
    rows = {row["sample_key"]: row for row in made.rows}
    for row in selected(tmp_path):
        source = rows[row["sample_key"]]
        w = np.array([1 / counts.get(token, 1) for token in source["token_ids"]])
        expected = len(w) * w / w.sum() if source["vig"] is not None else np.ones(len(w))
        np.testing.assert_allclose(row["token_weights"], expected, rtol=1e-5)
    if given:  # another file by that name is another selection
        (tmp_path / "counts.txt").write_text("1 5\n")
        with pytest.raises(StageError, match="another run of `vig select`"):
            select(made.scores, tmp_path, strategy="rare", **file)


@pytest.mark.parametrize("of", ["losses", "perplexities"])
def test_ifd_keeps_the_hardest_that_their_instruction_helps(tmp_path: Path, of: Any) -> None:
    rows = made_up(400, seed=6)
    rng = np.random.default_rng(0)
    alone = [row | {"text_loss": row["clean_loss"] and row["clean_loss"] * rng.uniform(0.8, 3)} for row in rows]
    references = ("blur", "text")
    scores = write(tmp_path, alone, references=references)
    found = select(scores, tmp_path / "out", strategy="ifd", r=30, ifd_of=of)
    ratios = {}
    for row in scored(alone):
        c, t = row["clean_loss"], row["text_loss"]
        ratios[row["sample_key"]] = c / t if of == "losses" else np.exp(c) / np.exp(t)
    few = sorted((value for value in ratios.values() if value <= 1), reverse=True)
    least = few[int(len(few) * 0.3) - 1]
    assert keys(selected(tmp_path / "out")) - keys(text_only(rows)) == {
        key for key, value in ratios.items() if least <= value <= 1
    }
    assert found.kept[0].thresholds == {"": pytest.approx(least)}
    every = select(scores, tmp_path / "all", strategy="ifd", r=100, ifd_of=of, keep_negative=True)
    assert every.kept[0].counted.total("scored") == len(ratios)


def without(row: Row, *passes: str) -> str:
    """Take these passes' results from a row, as where they failed; returns its key."""
    row |= {f"{name}_{kind}": None for name in passes for kind in ("loss", "logprobs")}
    row |= {"error": "; ".join(f"{name.capitalize()}: NotFinite: overflow" for name in passes)}
    row["vig"] = row["vig"] if {"blur", "clean"}.isdisjoint(passes) else None
    return str(row["sample_key"])


def test_a_pass_that_failed_costs_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    rows = [row | {"text_loss": row["clean_loss"] and 2 * row["clean_loss"]} for row in made_up(60, seed=6)]
    for row in rows:
        row["text_logprobs"] = row["clean_logprobs"] and [2 * value for value in row["clean_logprobs"]]
    every, texts = keys(scored(rows)), keys(text_only(rows))
    few = scored(rows)[:9]
    for row, passes in zip(few, [("text",), ("blur",), ("clean", "blur")] * 3, strict=True):
        without(row, *passes)
    scores = write(tmp_path, rows, references=("blur", "text"))
    found = select(scores, tmp_path / "ifd", strategy="ifd", r=100)
    assert keys(selected(tmp_path / "ifd")) == (every - keys(few[0::3] + few[2::3])) | texts
    assert found.read.total("scored") == len(every) - 3
    assert "3 scored samples lack what the strategy needs and are left out" in found.text()
    found = select(scores, tmp_path / "prior", strategy="prior", reference="text")
    assert keys(selected(tmp_path / "prior")) == (every - keys(few[0::3])) | texts
    assert found.read.total("failed") == len(rows) - len(every) - len(texts) + 3


def test_gains_over_another_models_losses_are_taken_where_asked_for(tmp_path: Path) -> None:
    """`text` is a language model's: its losses less the clean ones aren't VIG, and rank only by an explicit option."""
    rng = np.random.default_rng(3)
    rows = made_up(200, seed=6)
    for row in scored(rows):
        ratios = rng.uniform(0.5, 3, len(row["clean_logprobs"]))
        row["text_logprobs"] = [float(np.float32(each)) for each in row["clean_logprobs"] * ratios]
        row["text_loss"] = -float(np.mean(row["text_logprobs"]))
    scores = write(tmp_path, rows, references=("blur", "text"))
    with pytest.raises(StageError, match=r"one model's loss less another's.*--across-models"):
        select(scores, tmp_path / "out", reference="text")
    found = select(scores, tmp_path / "out", reference="text", across_models=True, p=70)
    assert "gains are losses of text, another model's, less the clean ones" in found.text()
    table = pd.DataFrame(scored(rows))
    gains = table.text_loss - table.clean_loss
    expected = {*table.sample_key[gains.rank(ascending=False, method="first") <= int(0.7 * len(table))]}
    assert keys(selected(tmp_path / "out")) == expected | keys(text_only(rows))
    tau = float(gains[table.sample_key.isin(expected)].min())
    by_key = {row["sample_key"]: row for row in rows}
    for row in selected(tmp_path / "out"):
        if row["sample_key"] in expected:
            source = by_key[row["sample_key"]]
            token_gains = np.subtract(source["clean_logprobs"], source["text_logprobs"])
            np.testing.assert_array_equal(row["token_weights"], token_gains >= tau)
    for options in ({"reference": "blur"}, {"reference": "text", "strategy": "prior"}):
        with pytest.raises(StageError, match="--across-models: has no effect"):
            select(scores, tmp_path / "other", across_models=True, **options)
    again = select(scores, tmp_path / "out", reference="text", across_models=True, p=70)
    assert again.kept == found.kept


def test_why_nothing_can_be_kept_is_told(made: Made, tmp_path: Path) -> None:
    rows = [row | {"text_loss": row["clean_loss"] and row["clean_loss"] / 2} for row in made_up(60, seed=6)]
    for row in scored(rows):
        row["vig"] = -1.0
    scores = write(tmp_path, rows, references=("blur", "text"))

    def refused(told: str, scores: str, **options: Any) -> None:
        with pytest.raises(StageError, match=told):
            select(scores, tmp_path / "out", **options)

    refused(r": no sample has a score above 0; --keep-negative", scores, strategy="top")
    refused(r": no sample has an IFD of 1 or less; --keep-negative", scores, strategy="ifd")
    without(scored(rows)[0], "text")
    scores = write(tmp_path / "one", rows, references=("blur", "text"))
    refused(r"an IFD of 1 or less, and 1 lack the loss of its answers alone; --keep", scores, strategy="ifd")
    for row in scored(rows):
        without(row, "text")
    scores = write(tmp_path / "none", rows, references=("blur", "text"))
    refused(rf"none of {len(scored(rows))} scored samples has the loss of its answers alone", scores, strategy="ifd")
    lacking = {key: dict.fromkeys(row) | {"sample_key": key, "error": "X: y"} for key, row in made.measures.items()}
    write_measures(tmp_path, lacking)
    for strategy in ("clip-score", "el2n", "attention"):
        told = rf"none of {len(scored(made.rows))} scored samples has {strategy} in .*measures, which --strategy"
        refused(told, made.scores, strategy=strategy, measures=str(tmp_path))


def test_difficulty_of_losses_that_are_nothing() -> None:
    clean, text = np.array([0.0, 1.0, 2.0, 0.0]), np.array([0.0, 0.0, 4.0, 5.0])
    np.testing.assert_array_equal(difficulty(clean, text, of="losses"), [1.0, np.inf, 0.5, 0.0])


def test_on_ray_it_is_the_same(made: Made, tmp_path: Path, local_ray: None) -> None:
    here = select(made.scores, tmp_path / "here", strategy="clip")
    there = select(made.scores, tmp_path / "there", strategy="clip", rows_per_file=100, address="local")
    assert here.kept == there.kept
    assert selected(tmp_path / "here") == selected(tmp_path / "there") or _alike(tmp_path)


def _alike(tmp_path: Path) -> bool:
    pairs = zip(selected(tmp_path / "here"), selected(tmp_path / "there"), strict=True)
    return all(a["sample_key"] == b["sample_key"] and a["token_weights"] == b["token_weights"] for a, b in pairs)


def test_what_is_missing_or_of_others_is_one_line(made: Made, tmp_path: Path) -> None:
    def refused(told: str, **options: Any) -> None:
        with pytest.raises(StageError, match=told) as failed:
            select(made.scores, tmp_path / "out", **options)
        assert "\n" not in str(failed.value)

    refused("no measures here.*`vig measure --scores .* --measures clip --out OUT`", strategy="clip", measures="/no")
    write_measures(tmp_path / "few", made.measures, names=("el2n",))
    refused("hold no attention", strategy="attention", measures=str(tmp_path / "few"))
    write_measures(tmp_path / "other", made.measures, template="another")
    refused("not of the samples, or not of the tokens", strategy="clip", measures=str(tmp_path / "other"))
    spoiled = {key: dict(row) for key, row in made.measures.items()}
    first = next(row for row in spoiled.values() if row["answer_ids"] is not None)
    first["answer_ids"] = [first["answer_ids"][0] + 1, *first["answer_ids"][1:]]
    write_measures(tmp_path / "spoiled", spoiled)
    refused("aren't those that were scored", strategy="clip", measures=str(tmp_path / "spoiled"))
    refused("no losses of the answers alone.*--reference blur,text", strategy="ifd")
    refused("--counts: has no effect with --strategy vig", counts="counts.txt")
    refused("--weights-sum: has no effect with --strategy vig", weights_sum="one")
    refused("--measures: has no effect with --strategy top", strategy="top", measures="there")
    for text, told in (
        ("1 2 3", "line 1 isn't"), ("1 2\n1 3", "line 2: id 1 is there twice"), ("-1 2", "line 1 isn't"),
        ("", "holds no counts"), ("99999999 1", "larger than any vocabulary"),
    ):  # fmt: skip
        (tmp_path / "counts.txt").write_text(text)
        refused(told, strategy="rare", counts=str(tmp_path / "counts.txt"))
    refused("can't be read", strategy="rare", counts=str(tmp_path / "nowhere.txt"))


def test_prior_of_scores_without_a_clean_pass(tmp_path: Path) -> None:
    """PRIOR needs the text pass alone."""
    rows = renamed(made_up(200, seed=8), "text")
    bare = [row | {"vig": None, "clean_loss": None, "clean_logprobs": None} for row in rows]
    found = select(write(tmp_path, bare, references=("text",)), tmp_path / "out", strategy="prior")
    assert found.read.total("scored") == len(scored(rows))
    for row in selected(tmp_path / "out"):
        source = next(each for each in bare if each["sample_key"] == row["sample_key"])
        if source["text_logprobs"] is not None:
            w = 1 - np.exp(np.float64(source["text_logprobs"]))
            expected = len(w) * w / w.sum() if w.sum() else np.ones(len(w))
            np.testing.assert_allclose(row["token_weights"], expected, rtol=1e-5)
