"""Every strategy against a plain reimplementation over all rows in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.selection.made import IDENTITY, made_up, selected, write
from vig_ray.errors import StageError
from vig_ray.selection import job
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.strategies import strategies
from vig_ray.stage import read_stage


def select(scores: str, out: Path, **options: Any) -> job.Selection:
    return job.run(SelectConfig(scores=scores, out=str(out), **options))


def keys(rows: list[dict[str, Any]]) -> set[str]:
    return {row["sample_key"] for row in rows}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return made_up(1000)


@pytest.fixture(scope="module")
def scores(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("made"), rows)


def scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["vig"] is not None]


def text_only(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["vig"] is None and row["error"] is None]


def top(candidates: list[dict[str, Any]], column: str, share: float) -> tuple[set[str], float]:
    """The top share by sorting, ties at the threshold included, and the threshold."""
    values = sorted((row[column] for row in candidates), reverse=True)
    threshold = values[max(1, int(len(values) * share / 100 + 1e-9)) - 1]
    return {row["sample_key"] for row in candidates if row[column] >= threshold}, threshold


@pytest.mark.parametrize("p", [0.05, 30, 50, 70, 99.9, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_vig_keeps_what_equations_7_to_9_say(tmp_path: Path, p: float, ties: bool) -> None:
    rows = made_up(400, seed=3, ties=ties)
    found = select(write(tmp_path, rows), tmp_path / "out", p=p)
    kept, tau = top(scored(rows), "vig", p)
    assert found.kept[0].thresholds == {"": tau}
    by_key = {row["sample_key"]: row for row in rows}
    chosen = selected(tmp_path / "out")
    assert keys(chosen) == kept | keys(text_only(rows))
    active = 0
    for row in chosen:
        source = by_key[row["sample_key"]]
        assert row["token_ids"] == source["token_ids"]
        if source["vig"] is None:
            assert row["token_weights"] == [1.0] * source["num_answer_tokens"]
            continue
        gains = [a - b for a, b in zip(source["clean_logprobs"], source["blur_logprobs"], strict=True)]
        assert row["token_weights"] == [float(gain >= tau) for gain in gains]
        active += sum(gain >= tau for gain in gains)
    counts = found.kept[0].counted
    assert counts.total("scored") == len(kept)
    assert counts.total("tokens") == sum(by_key[key]["num_answer_tokens"] for key in kept)
    assert counts.total("active") == active
    # The mean of a kept sample's gains is tau or more, so one of them is, but for rounding; and that is counted.
    empty = [row for row in chosen if row["token_weights"] and not any(row["token_weights"])]
    assert counts.total("emptied") == len(empty)


def test_a_sample_that_rounding_leaves_without_tokens_is_counted_and_told(tmp_path: Path) -> None:
    rows = made_up(40, seed=5)
    lone = scored(rows)[0]
    lone |= {"vig": 9.0, "clean_logprobs": [-0.5], "blur_logprobs": [-1.0], "token_ids": [1]}
    lone |= {"num_answer_tokens": 1, "turn": [0]}
    found = select(write(tmp_path, rows), tmp_path / "out", p=3)
    assert found.kept[0].counted.total("emptied") == 1
    assert "1 of the samples kept at 3 % have no active token" in found.text()
    assert lone["sample_key"] in keys(selected(tmp_path / "out"))


def test_vig_samples_has_all_tokens_and_at_100_it_is_full(scores: str, rows: Any, tmp_path: Path) -> None:
    select(scores, tmp_path / "a", strategy="vig-samples", p=100)
    select(scores, tmp_path / "b", strategy="full")
    assert selected(tmp_path / "a") == selected(tmp_path / "b")
    assert keys(selected(tmp_path / "a")) == keys(scored(rows)) | keys(text_only(rows))
    select(scores, tmp_path / "c", strategy="vig-samples", p=40)
    assert keys(selected(tmp_path / "c")) == top(scored(rows), "vig", 40)[0] | keys(text_only(rows))
    assert all(row["token_weights"] is None for row in selected(tmp_path / "c"))


def test_random_is_of_vigs_size_and_repeats_by_its_seed(scores: str, rows: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        select(scores, tmp_path / name, strategy="random", p=30, seed=seed)
    a, b, c = (selected(tmp_path / name) for name in "abc")
    assert a == b
    assert keys(a) != keys(c)
    assert len(a) == len(c) == int(len(scored(rows)) * 0.3) + len(text_only(rows))
    # It is no selection by gain in disguise.
    by_key = {row["sample_key"]: row["vig"] for row in scored(rows)}
    means = [np.mean([by_key[key] for key in keys(one) if key in by_key]) for one in (a, c)]
    everything = np.array(list(by_key.values()))
    assert np.abs(np.array(means) - everything.mean()).max() < 5 * everything.std() / np.sqrt(len(by_key) * 0.3)


@pytest.mark.parametrize(
    ("strategy", "column", "positive"),
    [("top", "vig", True), ("reference-loss", "blur_loss", False), ("clean-loss", "clean_loss", False)],
)
def test_top_r_without_clusters(
    scores: str, rows: Any, tmp_path: Path, strategy: Any, column: str, positive: bool
) -> None:
    select(scores, tmp_path, strategy=strategy, r=15, clusters=1)
    candidates = [row for row in scored(rows) if row["vig"] > 0 or not positive]
    assert keys(selected(tmp_path)) == top(candidates, column, 15)[0] | keys(text_only(rows))


def test_negative_scores_compete_where_asked(scores: str, rows: Any, tmp_path: Path) -> None:
    select(scores, tmp_path, strategy="top", r=95, keep_negative=True)
    assert keys(selected(tmp_path)) == top(scored(rows), "vig", 95)[0] | keys(text_only(rows))


def test_prior_keeps_all_and_its_weights_sum_to_the_tokens(scores: str, rows: Any, tmp_path: Path) -> None:
    select(scores, tmp_path, strategy="prior", alpha=2)
    by_key = {row["sample_key"]: row for row in rows}
    chosen = selected(tmp_path)
    assert keys(chosen) == keys(scored(rows)) | keys(text_only(rows))
    for row in chosen:
        source = by_key[row["sample_key"]]
        assert sum(row["token_weights"]) == pytest.approx(source["num_answer_tokens"], rel=1e-5)
        if source["vig"] is not None:
            w = (1 - np.exp(np.float64(source["blur_logprobs"]))) ** 2
            expected = len(w) * w / w.sum() if w.sum() else np.ones(len(w))
            np.testing.assert_allclose(row["token_weights"], expected, rtol=1e-5)


def test_the_order_is_a_shuffle_that_only_seed_and_keys_decide(rows: Any, tmp_path: Path) -> None:
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    for name, these, files in (("a", rows, 1), ("b", shuffled, 17)):
        select(write(tmp_path / name, these, files=files), tmp_path / name, p=50, rows_per_file=64)
    a, b = selected(tmp_path / "a"), selected(tmp_path / "b")
    assert a == b
    assert [row["position"] for row in a] == list(range(len(a)))
    numbers = np.array([int(row["sample_key"].split("/")[1]) for row in a])
    assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.15
    select(write(tmp_path / "c", rows), tmp_path / "c", p=50, seed=7)
    assert [row["sample_key"] for row in selected(tmp_path / "c")] != [row["sample_key"] for row in a]


def test_leaving_samples_out_leaves_the_others_in_order(scores: str, tmp_path: Path) -> None:
    select(scores, tmp_path / "all", strategy="full")
    select(scores, tmp_path / "half", p=50)
    half = [row["sample_key"] for row in selected(tmp_path / "half")]
    kept = set(half)
    assert [row["sample_key"] for row in selected(tmp_path / "all") if row["sample_key"] in kept] == half


def test_quotas_rank_a_source_by_itself(scores: str, rows: Any, tmp_path: Path) -> None:
    found = select(scores, tmp_path, p=70, quota={"coco": 20})
    coco = [row for row in scored(rows) if row["source"] == "coco"]
    rest = [row for row in scored(rows) if row["source"] != "coco"]
    (few, tau_coco), (many, tau) = top(coco, "vig", 20), top(rest, "vig", 70)
    assert found.kept[0].thresholds == {"": tau, "coco": tau_coco}
    assert keys(selected(tmp_path)) == few | many | keys(text_only(rows))
    by_key = {row["sample_key"]: row for row in rows}
    for row in selected(tmp_path):
        source = by_key[row["sample_key"]]
        if source["vig"] is not None:
            gain = np.float64(source["clean_logprobs"]) - np.float64(source["blur_logprobs"])
            threshold = tau_coco if source["source"] == "coco" else tau
            np.testing.assert_array_equal(row["token_weights"], gain >= threshold)


def test_a_sweep_compares_and_selects_nothing(scores: str, tmp_path: Path) -> None:
    sweep = select(scores, tmp_path / "sweep", p="30,50,70")
    assert selected(tmp_path / "sweep") == []
    for kept, p in zip(sweep.kept, (30, 50, 70), strict=True):
        single = select(scores, tmp_path / str(p), p=p).kept[0]
        assert (kept.share, kept.thresholds) == (single.share, single.thresholds)
        assert kept.counted.by_source == single.counted.by_source
    printed = sweep.text()
    assert [line.split()[0] for line in printed.splitlines() if " % " in line and line[0].isdigit()] == [
        "30",
        "50",
        "70",
    ]
    assert "nothing selected" in printed


def test_what_is_printed_adds_up_and_stands_in_the_record(scores: str, rows: Any, tmp_path: Path) -> None:
    found = select(scores, tmp_path, p=70)
    failed = [row for row in rows if row["error"]]
    first = found.text().splitlines()[0]
    assert first == (
        f"read 1,000 = scored {len(scored(rows)):,} + text-only {len(text_only(rows)):,} + "
        f"failed {len(failed):,} (left out)"
    )
    stage = read_stage(str(tmp_path / "selection"))
    assert stage is not None
    assert stage["complete"]
    assert stage["selection"]["kept"][0]["total"]["scored"] == found.kept[0].counted.total("scored")
    sums = [sum(one["tokens"] for one in part["by_source"].values()) for part in stage["selection"]["kept"]]
    assert sums == [found.kept[0].counted.total("tokens")]
    assert (stage["model"], stage["template"]) == (IDENTITY["model"], IDENTITY["template"])


def test_the_same_command_again_does_nothing_and_another_is_refused(scores: str, tmp_path: Path) -> None:
    first = select(scores, tmp_path, p=70)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "selection").iterdir()}
    again = select(scores, tmp_path, p=70)
    assert again.text() == first.text()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "selection").iterdir()} == before
    with pytest.raises(StageError, match=r"another run of `vig select` \(p differ"):
        select(scores, tmp_path, p=60)
    select(scores, tmp_path, p=60, overwrite=True)
    # A run that was killed is done again from its beginning, and leaves no rows of the first.
    stage = tmp_path / "selection.stage.json"
    stage.write_text(stage.read_text().replace('"complete": true', '"complete": false'))
    select(scores, tmp_path, p=60)
    rows = selected(tmp_path)
    assert [row["position"] for row in rows] == list(range(len(rows)))


def test_on_ray_it_is_the_same(scores: str, tmp_path: Path, local_ray: None) -> None:
    here = select(scores, tmp_path / "here", p=50)
    there = select(scores, tmp_path / "there", p=50, rows_per_file=100, address="local")
    assert here.kept == there.kept
    assert selected(tmp_path / "here") == selected(tmp_path / "there")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"p": 0}, "above 0 and up to 100"),
        ({"p": 101}, "above 0 and up to 100"),
        ({"p": ","}, "takes a percentage"),
        ({"p": "30,x"}, "number"),
        ({"r": 0}, "above 0 and up to 100"),
        ({"alpha": -1}, "greater than or equal to 0"),
        ({"quota": ["coco"]}, "SOURCE=PERCENT"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SelectConfig(scores="s", out="o", **options)


def test_wrong_inputs_are_one_line_before_any_work(scores: str, rows: Any, tmp_path: Path) -> None:
    def refused(told: str, given: str, **options: Any) -> None:
        with pytest.raises(StageError, match=told) as failed:
            select(given, tmp_path / "refused", **options)
        assert "\n" not in str(failed.value)
        assert not (tmp_path / "refused" / "selection").exists()

    refused("no scores here", str(tmp_path))
    refused("takes none, so several", scores, strategy="full", p="30,50")
    refused("has no effect", scores, strategy="prior", quota={"coco": 5})
    refused("no samples. beside them.*--clusters 1", scores, strategy="visnec")
    unfinished = Path(write(tmp_path / "unfinished", rows))
    stage = unfinished / "scores.stage.json"
    stage.write_text(stage.read_text().replace('"complete": true', '"complete": false'))
    refused("not finished; run the same", str(unfinished))
    bare = Path(write(tmp_path / "bare", rows, files=1))
    path = bare / "scores" / "0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["clean_logprobs"]), path)
    refused("no column 'clean_logprobs'", str(bare), strategy="vig")
    (bare / "scores" / "0.parquet").unlink()
    refused("no Parquet", str(bare))


def test_nothing_to_select_is_told(rows: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no sample has a score"):
        select(write(tmp_path / "text", text_only(rows)), tmp_path / "a")
    negative = [row | {"vig": -abs(row["vig"])} for row in scored(rows)]
    with pytest.raises(StageError, match="--keep-negative"):
        select(write(tmp_path / "negative", negative), tmp_path / "b", strategy="top")


def test_a_quota_of_a_source_that_is_not_there_is_told(scores: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="--quota nowhere: no sample of this source"):
        select(scores, tmp_path, quota={"nowhere": 5})


def test_keys_that_occur_twice_are_told(rows: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="occurs twice"):
        select(write(tmp_path, [*rows, scored(rows)[0]]), tmp_path / "out", strategy="full")


def test_every_strategy_has_a_name_of_its_own_file() -> None:
    from typing import get_args

    from vig_ray.selection.config import StrategyName

    assert list(strategies()) == list(get_args(StrategyName))


@pytest.mark.parametrize("on_ray", [False, True])
@pytest.mark.parametrize("lacks", [0, 2])
def test_files_of_a_version_that_kept_nothing_have_none(
    lacks: int, on_ray: bool, tmp_path: Path, local_ray: None
) -> None:
    """A run that began with such a version, and went on with this one."""
    rows = made_up(60, seed=2)
    for row in rows:
        row["kept"] = [{"name": "rating", "value": "4"}]
    made = Path(write(tmp_path, rows))
    record = made / "scores.stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"kept": {"rating": 40}}))
    path = made / "scores" / f"{lacks}.parquet"
    without = set(pq.read_table(path)["sample_key"].to_pylist())
    pq.write_table(pq.read_table(path).drop_columns("kept"), path)
    job.run(SelectConfig(scores=str(made), out=str(made), p=100, address="auto" if on_ray else None))
    chosen = selected(made)
    assert {row["sample_key"] for row in chosen} & without
    assert all((row["kept"] is None) == (row["sample_key"] in without) for row in chosen)
