"""What `vig select` keeps of the demo world, where it is known which samples and tokens the image decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import call
from tests.end_to_end.conftest import read_scores
from tests.selection.made import selected
from vig_ray.demo import truth

DECIDED = ("color", "place")  # the kinds whose answer only the image tells


@pytest.fixture(scope="module")
def chosen(held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Selections by the command line: vig at three percentages, random at 70."""
    found = {}
    for name, options in {
        "vig30": ["--p", "30"], "vig50": ["--p", "50"], "vig70": ["--p", "70"], "random70": ["--strategy", "random"],
    }.items():  # fmt: skip
        found[name] = tmp_path_factory.mktemp(name)
        done = call("select", "--scores", str(held_out), "--out", str(found[name]), *options)
        (found[name] / "printed.txt").write_text(done.stdout)
    return found


def shares_by_source(held_out: Path, out: Path) -> dict[str, float]:
    kept = {row["sample_key"] for row in selected(out)}
    totals: dict[str, list[int]] = {}
    for row in read_scores(held_out):
        totals.setdefault(row["source"], []).append(row["sample_key"] in kept)
    return {source: sum(values) / len(values) for source, values in totals.items()}


def test_mismatched_samples_go_and_those_the_image_decides_stay(held_out: Path, chosen: dict[str, Path]) -> None:
    shares = shares_by_source(held_out, chosen["vig70"])
    assert shares["mismatched"] < 0.05
    for kind in DECIDED:
        assert shares[kind] > 0.95
    assert shares["text"] == 1.0
    assert shares["knowledge"] < 0.3
    by_chance = shares_by_source(held_out, chosen["random70"])
    assert by_chance["mismatched"] > 0.4
    assert all(0.5 < by_chance[kind] < 0.9 for kind in DECIDED)


def decided_share(held_out: Path, out: Path, formatter) -> float:
    """The share of active tokens, of samples with an image, that the image decides."""
    known = [json.loads(line) for line in (held_out / "data" / "truth.jsonl").read_text().splitlines()]
    scores = {row["sample_key"]: row for row in read_scores(held_out)}
    active = decided = 0
    for row in selected(out):
        score = scores[row["sample_key"]]
        if score["vig"] is None:
            continue
        number = int(row["sample_key"].rsplit("/", 1)[1])
        pieces = formatter.tokenizer.convert_ids_to_tokens(score["token_ids"])
        marked = truth.decided_tokens(pieces, score["turn"], known[number]["decided"])
        weights = row["token_weights"] or [1.0] * len(marked)
        active += sum(weight > 0 for weight in weights)
        decided += sum(bool(mark) for mark, weight in zip(marked, weights, strict=True) if weight > 0)
    return decided / active


def test_active_tokens_are_those_that_the_image_decides(
    held_out: Path, chosen: dict[str, Path], demo_formatter, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = {name: decided_share(held_out, out, demo_formatter) for name, out in chosen.items()}
    with capsys.disabled():
        print("\nactive tokens that the image decides: ", {name: f"{share:.3f}" for name, share in shares.items()})
    for name in ("vig30", "vig50", "vig70"):
        assert shares[name] > 2 * shares["random70"]
        assert shares[name] > 0.8


def test_what_is_printed_is_the_papers_table(chosen: dict[str, Path], held_out: Path) -> None:
    printed = (chosen["vig70"] / "printed.txt").read_text()
    assert printed.splitlines()[0].startswith("read 2,000 = scored ")
    for word in ("tau", "samples", "sample tokens", "active tokens", "by source", "mismatched"):
        assert word in printed
    again = call("select", "--scores", str(held_out), "--out", str(chosen["vig70"]), "--p", "70")
    assert "nothing to select" in again.stderr
