"""Whether a selection tilts, against pandas and scipy, and what `vig select` says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.selection.made import made_up, selected, write
from tests.selection.test_select import scored, select
from vig_ray.dataset.importing import ImportConfig
from vig_ray.errors import StageError
from vig_ray.selection.counts import Selection
from vig_ray.selection.tilt import LEAST, RARE, Rows, Tilt, tilt_of
from vig_ray.stage import read_stage, write_stage


def drawn(n: int, seed: int, answers: int = 3) -> Rows:
    """Three sources with three kinds of questions each, of which one is too small to stand alone; rare answers too."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, n, p=[0.6, 0.395, 0.005]).astype(np.uint64)
    answer = (rng.integers(0, answers, n) + 10 * kinds.astype(np.int64)).astype(np.uint64)
    rare = rng.random(n) < 0.01
    answer[rare] = rng.integers(1000, 1100, rare.sum())
    return Rows(
        np.asarray([f"k{number:06d}" for number in range(n)], object),
        np.asarray([("coco", "vg", "ocr")[each] for each in rng.integers(0, 3, n)], object),
        kinds, answer, rng.integers(1, 40, n), np.zeros((n, 1), np.bool_),
        np.full(n, 2), np.stack([answer.astype(np.int64), np.full(n, 9999)], axis=1).ravel(),
    )  # fmt: skip


def by_pandas(rows: Rows) -> pd.DataFrame:
    """The shares of answers by group, before and after."""
    table = pd.DataFrame({"source": rows.sources, "kind": rows.kinds, "answer": rows.answers.astype(str),
                          "kept": rows.kept[:, 0]})  # fmt: skip
    size = table.groupby(["source", "kind"])["kept"].transform("size")
    table["group"] = table["source"] + "/" + table["kind"].astype(str)
    table.loc[size < LEAST, "group"] = table["source"] + "/few"
    of_answer = table.groupby(["group", "answer"])["kept"].transform("size")
    table.loc[of_answer < RARE, "answer"] = "rare"
    found = table.groupby(["group", "answer"])["kept"].agg(before="size", after="sum").reset_index()
    for name in ("before", "after"):
        found[f"of_{name}"] = found.groupby("group")[name].transform("sum")
        found[f"share_{name}"] = found[name] / found[f"of_{name}"]
    return found


def test_shares_variation_and_intervals_are_those_of_pandas_and_scipy() -> None:
    rows = drawn(9000, 1)
    rng = np.random.default_rng(2)
    rows.kept[:, 0] = rng.random(9000) < np.where(rows.answers % 10 == 1, 0.9, 0.5)
    tilt = tilt_of(rows, 0, known=True, seed=0, shown=1000)
    assert tilt is not None
    table = by_pandas(rows)
    apart = (table["share_after"] - table["share_before"]).abs()
    of_group = apart.groupby(table["group"]).sum() / 2
    kept = table.groupby("group")["after"].sum()
    assert sorted(group.variation for group in tilt.groups) == pytest.approx(sorted(of_group))
    assert sorted(group.after for group in tilt.groups) == sorted(kept)
    # What chance makes of it: the mean absolute deviation of a hypergeometric distribution, answer by answer.
    law = stats.hypergeom(table["of_before"], table["before"], table["of_after"])
    deviation = [
        float(np.abs(np.arange(most + 1) / most - share) @ stats.hypergeom(n, k, most).pmf(np.arange(most + 1)))
        for n, k, most, share in zip(*(table[name] for name in ("of_before", "before", "of_after", "share_before")),
                                     strict=True)
    ]  # fmt: skip
    chance = pd.Series(deviation).groupby(table["group"]).sum() / 2
    assert tilt.answers == pytest.approx(((of_group - chance) * kept).sum() / kept.sum(), abs=0.002)
    for shift in tilt.shifts:
        near = table[
            np.isclose(table["share_before"], shift.before) & np.isclose(table["share_after"], shift.after)
            & table["group"].str.startswith(shift.source)
        ]  # fmt: skip
        assert len(near) >= 1
        spread = law.std()[near.index[0]] / near["of_after"].iloc[0]
        assert shift.high - shift.low == pytest.approx(2 * 1.96 * spread, rel=0.5)
    assert tilt.shifts[0].samples == pytest.approx(
        ((table["share_after"] - table["share_before"]) * table["of_after"]).abs().max()
    ) or tilt.shifts[0].samples < 0  # fmt: skip


def test_answers_that_are_all_different_are_told_by_their_tokens() -> None:
    """Captions of which every one that holds token 5 is kept, and half of the others."""
    n, rng = 4000, np.random.default_rng(8)
    ids = np.sort(np.stack([rng.permutation(60)[:6] for _ in range(n)]), axis=1)
    holds = (ids == 5).any(1)
    kept = holds | (rng.random(n) < 0.5)
    rows = Rows(
        np.asarray([f"k{number:06d}" for number in range(n)], object), np.full(n, "coco", object),
        np.zeros(n, np.uint64), rng.integers(0, 2**60, n).astype(np.uint64), np.full(n, 6), kept[:, None],
        np.full(n, 6), ids.ravel(),
    )  # fmt: skip
    tilt = tilt_of(rows, 0, known=False, seed=0)
    assert tilt is not None
    moved = holds[kept].mean() - holds.mean()
    (group,) = tilt.groups
    assert group.variation == pytest.approx(moved)
    law = stats.hypergeom(n, np.asarray([(ids == token).any(1).sum() for token in range(60)]), kept.sum())
    draws = np.random.default_rng(0)
    greatest = np.abs(law.rvs((500, 60), random_state=draws) / kept.sum() - law.mean() / kept.sum()).max(1).mean()
    assert tilt.answers == pytest.approx(moved - greatest, abs=0.003)
    assert tilt.shifts[0].token == 5
    assert (tilt.shifts[0].before, tilt.shifts[0].after) == pytest.approx((holds.mean(), holds[kept].mean()))
    assert 5 in ids[int(str(tilt.shifts[0].example)[1:])]


def phrases(n: int, seed: int, chosen: Any) -> Rows:
    """Captions of which each half has a phrase of its own of 20 tokens; `chosen` tells by the phrase what is kept."""
    rng = np.random.default_rng(seed)
    phrase = rng.random(n) < 0.5
    ids = np.concatenate(
        [np.arange(20) + np.where(phrase, 100, 200)[:, None], rng.integers(1000, 1400, (n, 4))], axis=1
    )
    unique = [np.unique(each) for each in ids]
    return Rows(
        np.asarray([f"k{number:06d}" for number in range(n)], object), np.full(n, "coco", object),
        np.zeros(n, np.uint64), rng.integers(0, 2**60, n).astype(np.uint64), np.full(n, 24),
        chosen(rng, phrase)[:, None], np.asarray([len(each) for each in unique]), np.concatenate(unique),
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.7, 0.1, 0.02])
def test_tokens_that_go_together_tilt_by_chance_as_one(share: float) -> None:
    """A random selection has none, and what one that favours a phrase has isn't hidden by what many tokens would vary
    by if each went its own way."""
    found = []
    for seed in range(8):
        tilt = tilt_of(phrases(3000, seed, lambda rng, _: rng.random(3000) < share), 0, known=False, seed=seed)
        assert tilt is not None
        found.append((tilt.answers, tilt.low <= tilt.answers <= tilt.high))
    assert sum(inside for _, inside in found) >= 6
    assert abs(np.mean([each for each, _ in found])) < 0.03
    rows = phrases(3000, 1, lambda rng, phrase: rng.random(3000) < np.where(phrase, 4 / 3, 2 / 3) * share)
    tilt = tilt_of(rows, 0, known=False, seed=0)
    assert tilt is not None
    holds = np.asarray([100 in each for each in np.split(rows.ids, np.cumsum(rows.different)[:-1])])
    moved = holds[rows.kept[:, 0]].mean() - holds.mean()
    chance = stats.hypergeom(3000, holds.sum(), rows.kept.sum())
    apart = np.abs(np.arange(chance.support()[1] + 1) / rows.kept.sum() - holds.mean())
    expected = moved - float(apart @ chance.pmf(np.arange(len(apart))))
    assert tilt.answers == pytest.approx(expected, abs=0.02)


def test_by_chance_there_is_none() -> None:
    """Of forty random selections hardly any is outside of its interval, and their mean is 0."""
    found = []
    for seed in range(40):
        rows = drawn(3000, seed, answers=12)
        rows.kept[:, 0] = np.random.default_rng(seed).permutation(3000) < 900
        tilt = tilt_of(rows, 0, known=True, seed=seed)
        assert tilt is not None
        found.append((tilt.answers, tilt.low <= tilt.answers <= tilt.high))
    assert sum(inside for _, inside in found) >= 34  # of 40; fewer in 1 of 100 times, were it 95 %
    assert abs(np.mean([each for each, _ in found])) < 0.01


def test_nothing_or_all_kept_tells_nothing_and_one_sample_is_no_error() -> None:
    rows = drawn(300, 3)
    assert tilt_of(rows, 0, known=False, seed=0) is None
    rows.kept[:, 0] = True
    assert tilt_of(rows, 0, known=False, seed=0) is None
    rows.kept[1:, 0] = False
    tilt = tilt_of(rows, 0, known=False, seed=0)
    assert tilt is not None
    assert np.isfinite([tilt.answers, tilt.low, tilt.high, tilt.sources, tilt.lengths]).all()
    assert Tilt.from_json(tilt.to_json()) == tilt


@pytest.fixture(scope="module")
def leaning(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """Answers of one token, 7 or 8; the gains of 7 are greater, whatever the image."""
    rows = made_up(2000, answer=2)
    for number, row in enumerate(rows):
        if row["vig"] is not None:
            row["token_ids"] = [7 + number % 2]
            lean = 1.0 if number % 2 == 0 else -1.0
            row["blur_logprobs"] = [min(0.0, row["blur_logprobs"][0] - lean)]
            row["blur_loss"] = -row["blur_logprobs"][0]
            row["vig"] = row["blur_loss"] - row["clean_loss"]
    return rows, write(tmp_path_factory.mktemp("leaning"), rows)


def test_select_tells_it_and_warns(leaning: tuple[list[dict[str, Any]], str], tmp_path: Path) -> None:
    rows, scores = leaning
    found = select(scores, tmp_path, p=50, strategy="vig-samples")
    answers = {row["sample_key"]: row["token_ids"][0] for row in scored(rows)}
    kept = [answers[row["sample_key"]] for row in selected(tmp_path) if row["sample_key"] in answers]
    (of,) = found.kept
    assert of.tilt is not None
    assert of.tilt.answers == pytest.approx(abs(kept.count(7) / len(kept) - 0.5), abs=0.02)
    assert not of.tilt.known
    told = found.text()
    assert "tilt of answers: " in told
    assert "WARNING: above 6 %" in told
    again = Selection.from_json((read_stage(str(tmp_path / "selection")) or {})["selection"], "")
    assert again.kept == found.kept
    within = select(scores, tmp_path / "within", p=50, strategy="vig-samples", within="answer").kept[0].tilt
    assert within is not None
    assert within.low <= within.answers <= within.high + 0.01


def test_strict_balance_refuses_before_anything_is_written(
    leaning: tuple[list[dict[str, Any]], str], tmp_path: Path
) -> None:
    _, scores = leaning
    earlier = select(scores, tmp_path, p=50, strategy="random")
    with pytest.raises(StageError, match=r"--strict-balance 10: tilt of answers: .*; nothing is written"):
        select(scores, tmp_path, p=50, strategy="vig-samples", strict_balance=10, overwrite=True)
    assert len(selected(tmp_path)) == sum(each.counted.total("scored") + each.counted.total("text_only")
                                          for each in earlier.kept)  # fmt: skip
    select(scores, tmp_path / "most", p=50, strategy="vig-samples", strict_balance=60)
    with pytest.raises(StageError, match="--strict-balance 10: tilt of answers"):  # of what is there already
        select(scores, tmp_path / "most", p=50, strategy="vig-samples", strict_balance=10)
    record = tmp_path / "most" / "selection.stage.json"
    told = json.loads(record.read_text())
    for kept in told["selection"]["kept"]:  # as a version left it that knew of no tilt
        kept.pop("tilt")
    record.write_text(json.dumps(told))
    with pytest.raises(StageError, match=r"--strict-balance 60: .*made without it.*--overwrite"):
        select(scores, tmp_path / "most", p=50, strategy="vig-samples", strict_balance=60)
    with pytest.raises(StageError, match="--strict-balance: has no effect with --strategy random"):
        select(scores, tmp_path / "random", strategy="random", strict_balance=5)


def test_samples_beside_that_are_not_theirs_are_no_error(
    leaning: tuple[list[dict[str, Any]], str], tmp_path: Path
) -> None:
    """Nobody asked for them; named they are refused, before any scan."""
    rows, _ = leaning
    scores = write(tmp_path / "made", rows)
    (tmp_path / "made" / "samples").mkdir()
    facts: dict[str, Any] = {"inputs": ["other.json"], "counts": {"rows": 5}, "format": "llava", "name": "x"}
    other = ImportConfig(data="other.json", out="other")
    write_stage(str(tmp_path / "made" / "samples"), "import", other, complete=True, images=None, **facts)
    found = select(scores, tmp_path / "out", p=50, strategy="vig-samples").kept[0].tilt
    assert found is not None
    assert not found.known
    with pytest.raises(StageError, match="not the samples that"):
        select(scores, tmp_path / "named", p=50, strategy="vig-samples", samples=str(tmp_path / "made"))
