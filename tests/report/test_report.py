"""The report's numbers against counting and sorting in plain Python, and that cuts of the scores don't matter."""

from __future__ import annotations

import collections
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.reporting import NEAR, assert_mean, gains_of, report
from tests.selection.made import selected, write
from vig_ray.demo import CHECKPOINT
from vig_ray.report import colours, scans, tally
from vig_ray.report.detokenize import load_tokenizer, token_text
from vig_ray.report.figures import figures
from vig_ray.selection import job as selecting
from vig_ray.selection.config import SelectConfig
from vig_ray.tables import scan


def group_of(vig: float) -> str:
    return "vision-critical" if vig > NEAR else "misaligned" if vig < -NEAR else "redundant"


def assert_gains(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    vig = [row["vig"] for row in rows]
    assert found["samples"] == len(rows)
    assert_mean(found, vig)
    for name, column in (("clean_loss", "clean_loss"), ("reference_loss", "blur_loss")):
        assert found[name] == pytest.approx(statistics.fmean(row[column] for row in rows))
    for name, q in (("q1", 0.25), ("median", 0.5), ("q3", 0.75)):
        assert found[name] == np.quantile(vig, q, method="inverted_cdf")
    groups = collections.Counter(map(group_of, vig))
    for name, group in found["groups"].items():
        assert group == {"samples": groups[name], "share": groups[name] / len(rows)}


def test_counts_means_quartiles_and_groups(told: Any, stored: Any, scored: Any) -> None:
    failed = [row for row in stored if row["error"] is not None]
    assert told["counts"] == {
        "read": 700,
        "scored": len(scored),
        "text_only": 700 - len(scored) - len(failed),
        "failed": len(failed),
        "truncated": sum(bool(row["num_truncated_tokens"]) for row in stored),
        "answer_tokens": sum(len(row["token_ids"]) for row in scored),
    }
    assert_gains(told["gain"], scored)
    assert (told["gain"]["min"], told["gain"]["max"]) == (
        min(row["vig"] for row in scored), max(row["vig"] for row in scored),
    )  # fmt: skip
    assert {row["source"] for row in told["sources"]} == {"coco", "vg", None}
    for row in told["sources"]:
        own = [each for each in scored if each["source"] == row["source"]]
        assert_gains(row, own)
        assert row["answer_tokens"] == sum(len(each["token_ids"]) for each in own)
        assert row["failed"] == sum(each["source"] == row["source"] for each in failed)
    assert [row["scored"] for row in told["sources"]] == sorted(
        (row["scored"] for row in told["sources"]), reverse=True
    )


def test_failures_by_class(told: Any, stored: Any) -> None:
    classes = collections.Counter(row["error"].partition(":")[0] for row in stored if row["error"])
    assert {row["class"]: row["rows"] for row in told["failures"]} == classes
    assert len(classes) == 2
    for row in told["failures"]:
        assert row["example"] in {each["error"] for each in stored}
        assert row["example"].startswith(row["class"])


def test_the_histogram_holds_every_sample_once(told: Any, scored: Any) -> None:
    counted = {
        (row["source"], row["group"], row["low"], row["high"]): row["samples"] for row in told["sample_gains"]["bins"]
    }
    assert sum(counted.values()) == len(scored)
    for (source, group, low, high), count in counted.items():
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        inside = [row for row in scored if row["source"] == source and low <= row["vig"] < high]
        assert count == sum(group_of(row["vig"]) == group for row in inside)
    inside = [width for low, high in {key[2:] for key in counted} if None not in (low, high) for width in (high - low,)]
    assert inside == pytest.approx([told["sample_gains"]["step"]] * len(inside))


@pytest.mark.parametrize("name", ["token_losses", "sample_losses"])
def test_densities(name: str, told: Any, scored: Any) -> None:
    step = told[name]["step"]
    if name == "token_losses":
        pairs = [(-a, -b) for row in scored for a, b in zip(row["clean_logprobs"], row["blur_logprobs"], strict=True)]
    else:
        pairs = [(row["clean_loss"], row["blur_loss"]) for row in scored]
    open_from = told[name]["open_from"]
    left = list(pairs)
    for cell in told[name]["cells"]:
        low = np.array([cell["with"], cell["without"]])
        high = np.where(low < open_from, low + step, np.inf)
        inside = [pair for pair in pairs if (low <= pair).all() and (pair < high).all()]
        assert cell["count"] == len(inside)
        assert cell["mean_gain"] == pytest.approx(statistics.fmean(b - a for a, b in inside), abs=1e-6)
        left = [pair for pair in left if pair not in set(inside)]
    assert not left


def test_token_table(told: Any, scored: Any) -> None:
    gains: dict[int, list[float]] = {}
    for row in scored:
        for token, gain in zip(row["token_ids"], gains_of(row), strict=True):
            gains.setdefault(token, []).append(gain)
    frequent = sorted(
        (token for token in gains if len(gains[token]) >= 5), key=lambda t: (-statistics.fmean(gains[t]), t)
    )
    assert told["tokens"]["different"] == len(gains)
    assert told["tokens"]["frequent"] == len(frequent)
    tokenizer = load_tokenizer(CHECKPOINT)
    for name, expected in (("highest", frequent[:7]), ("lowest", frequent[::-1][:7])):
        assert [row["id"] for row in told["tokens"][name]] == expected
        for row in told["tokens"][name]:
            assert row["count"] == len(gains[row["id"]])
            assert row["text"] == token_text(tokenizer, row["id"])
            assert_mean(row, gains[row["id"]])


def test_steps_places_and_lengths(told: Any, scored: Any) -> None:
    every = [gain for row in scored for gain in gains_of(row)]
    steps = {row["step"]: row for row in told["token_steps"]}
    assert steps["p3"]["tokens"] == sum(gain >= 1 for gain in every)
    assert steps["m1"]["tokens"] == sum(-0.3 < gain <= -0.1 for gain in every)
    assert steps["zero"]["tokens"] == sum(-0.1 < gain < 0.1 for gain in every)
    assert sum(row["tokens"] for row in steps.values()) == len(every)
    assert sum(row["share"] for row in steps.values()) == pytest.approx(1)
    by_place: dict[int, list[float]] = {}
    for row in scored:
        seen: collections.Counter[int] = collections.Counter()
        for turn, gain in zip(row["turn"], gains_of(row), strict=True):
            seen[turn] += 1
            by_place.setdefault(seen[turn], []).append(gain)
    assert max(by_place) > 12
    for found, values, what in (
        (told["places"], by_place, "tokens"),
        (
            told["lengths"],
            {n: [row["vig"] for row in scored if len(row["token_ids"]) == n] for n in range(1, 200)},
            "samples",
        ),
    ):
        assert sum(row[what] for row in found) == sum(map(len, values.values()))
        for row in found:
            own = [v for place in values for v in values[place] if row["first"] <= place <= (row["last"] or math.inf)]
            assert row[what] == len(own)
            assert_mean(row, own)


def test_thresholds_are_those_of_vig_select(told: Any, scores: str, scored: Any, tmp_path: Path) -> None:
    assert [row["p"] for row in told["thresholds"]] == [30, 50, 70, 100]
    tokens = sum(len(row["token_ids"]) for row in scored)
    for row in told["thresholds"]:
        out = tmp_path / str(row["p"])
        record = selecting.run(SelectConfig(scores=scores, out=str(out), p=row["p"]))
        assert record.kept[0].thresholds[""] == row["tau"]
        kept = {each["sample_key"]: each for each in selected(out)}
        own = [each for each in scored if each["sample_key"] in kept]
        active = sum(sum(kept[each["sample_key"]]["token_weights"]) for each in own)
        sample_tokens = sum(len(each["token_ids"]) for each in own)
        assert (row["samples"], row["sample_tokens"], row["active_tokens"]) == (len(own), sample_tokens, active)
        assert row["samples_share"] == len(own) / len(scored)
        assert (row["sample_tokens_share"], row["active_tokens_share"]) == (sample_tokens / tokens, active / tokens)


def test_the_gallery_shows_the_extremes(told: Any, scored: Any) -> None:
    tau = next(row["tau"] for row in told["thresholds"] if row["p"] == 70)
    assert told["gallery"]["tau"] == tau
    vig = {row["sample_key"]: row["vig"] for row in scored}
    source = {row["sample_key"]: row["source"] for row in scored}
    measures = {"highest": lambda v: -v, "lowest": lambda v: v, "nearest": lambda v: abs(v - tau)}
    groups = told["gallery"]["groups"]
    for name, measure in measures.items():
        ranked = sorted(measure(value) for value in vig.values())
        first = [place["sample_key"] for place in groups[name] if place["of_all"]]
        assert [measure(vig[key]) for key in first] == ranked[:8]
        keys = [place["sample_key"] for place in groups[name]]
        assert len(set(keys)) == len(keys)
        for each in {"coco", "vg", None}:
            own = sorted(measure(vig[key]) for key in vig if source[key] == each)
            assert sorted(measure(vig[key]) for key in keys if source[key] == each)[:8] == own[:8]
    assert len({place["sample_key"] for place in groups["random"] if place["of_all"]}) == 8


def test_cuts_and_batches_make_no_difference(
    rows: Any, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "_TOKENS_A_BATCH", 50)
    monkeypatch.setattr(scans, "_MOST_ROWS", 256)
    order = np.random.default_rng(0).permutation(len(rows))
    other = write(tmp_path / "b", [rows[i] for i in order], files=1)
    monkeypatch.setattr(scan.Files.scan, "__kwdefaults__", {"batch_rows": 61, "fold": None})
    found = report(other, tmp_path, p="30,50,70,100", least=5, tokens=7)
    assert_same(found, told)


@pytest.mark.long
def test_on_ray_data(scores: str, told: Any, tmp_path: Path, local_ray: None) -> None:
    assert_same(report(scores, tmp_path, p="30,50,70,100", least=5, tokens=7, address="auto"), told)


def assert_same(found: Any, told: Any) -> None:
    """Sums of floats may differ in the last digit, with the order of the blocks; nothing else may."""
    if isinstance(told, dict):
        assert found.keys() == told.keys()
        for name in told.keys() - {"about"}:
            assert_same(found[name], told[name])
    elif isinstance(told, list):
        assert len(found) == len(told)
        for one, other in zip(found, told, strict=True):
            assert_same(one, other)
    elif isinstance(told, float):
        assert found == pytest.approx(told, rel=1e-9, abs=1e-9)
    else:
        assert found == told


def test_another_seed_draws_other_random_samples(scores: str, told: Any, tmp_path: Path) -> None:
    found = report(scores, tmp_path, p="30,50,70,100", least=5, tokens=7, seed=1)
    assert found["gallery"]["groups"]["random"] != told["gallery"]["groups"]["random"]
    assert found["gallery"]["groups"]["highest"][0] == told["gallery"]["groups"]["highest"][0]


def test_small_sources_are_told_but_share_a_histogram(scores: str, told: Any, tmp_path: Path) -> None:
    found = report(scores, tmp_path, sources=1)
    assert [row["shown"] for row in found["sources"]] == [True, False, False]
    assert "median" not in found["sources"][2]
    assert [row["mean"] for row in found["sources"]] == pytest.approx([row["mean"] for row in told["sources"]])
    others = sum(row["samples"] for row in found["sample_gains"]["bins"] if row.get("others"))
    assert others == sum(row["scored"] for row in found["sources"][1:])


def test_figures_carry_the_numbers(told: Any, tmp_path: Path) -> None:
    specs = {figure.name: figure.spec(700) for figure in figures(told)}
    assert len(specs) == 8
    bars = specs["sample-gain"]["data"]["values"]
    assert sum(row["samples"] for row in bars) == told["counts"]["scored"]
    assert [row["samples"] for row in bars] == [row["samples"] for row in told["sample_gains"]["bins"]]
    for name, what in (("token-losses", "token_losses"), ("sample-losses", "sample_losses")):
        values = specs[name]["layer"][1]["data"]["values"]
        assert [row["count"] for row in values] == [cell["count"] for cell in told[what]["cells"]]
        for row, cell in zip(values, told[what]["cells"], strict=True):
            assert row["x"] - cell["with"] == pytest.approx(told[what]["step"] / 2)
            assert row["gain"] == colours.WORDS[int(colours.step_of(cell["mean_gain"]))]
    for name, what in (("places", "tokens"), ("lengths", "samples")):
        assert [row["mean"] for row in specs[name]["data"]["values"]] == [row["mean"] for row in told[name]]
        assert sum(row[what] for row in specs[name]["data"]["values"]) == sum(row[what] for row in told[name])
    tokens = [row for part in specs["tokens"]["vconcat"] for row in part["data"]["values"]]
    assert [row["mean"] for row in tokens] == [
        row["mean"] for side in ("highest", "lowest") for row in told["tokens"][side]
    ]
    assert len({row["name"] for row in tokens[:7]}) == 7
    shares = specs["thresholds"]["vconcat"][0]["data"]["values"]
    assert [row["count"] for row in shares if row["what"] == "active tokens"] == [
        row["active_tokens"] for row in told["thresholds"]
    ]
    groups = specs["groups"]["data"]["values"]
    assert sum(row["samples"] for row in groups if row["source"] == "all samples") == told["counts"]["scored"]


@given(st.lists(st.lists(st.integers(0, 3), max_size=6).map(sorted), max_size=6))
def test_places_count_from_one_in_every_turn(samples: list[list[int]]) -> None:
    expected = [turns[:at].count(turn) + 1 for turns in samples for at, turn in enumerate(turns)]
    flat = np.array([turn for turns in samples for turn in turns], dtype=np.int32)
    assert tally.places(flat, np.array([len(turns) for turns in samples], dtype=np.int64)).tolist() == expected


@given(st.floats(-20, 20))
def test_steps_of_gain(gain: float) -> None:
    strength = sum(abs(gain) >= bound for bound in (0.1, 0.3, 1.0))
    assert colours.step_of(gain) == 3 + int(math.copysign(strength, gain))


@given(st.floats(-50, 50), st.floats(0, 30))
def test_edges_cover_the_range_in_round_steps(low: float, width: float) -> None:
    edges = scans.nice_edges(low, low + width)
    step = edges[1] - edges[0]
    assert edges[0] <= low + 1e-6
    assert edges[-1] >= low + width - 1e-6
    assert len(edges) <= 64
    assert float(f"{step:.0e}") == pytest.approx(step)
    assert np.allclose(edges / step, np.round(edges / step), atol=1e-3)
