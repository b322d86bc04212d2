"""`--within` against pandas: what each group keeps, what small groups keep together, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.selection.made import made_up, selected, write
from tests.selection.test_select import keys, scored, select, text_only
from vig_ray.errors import StageError
from vig_ray.selection.within import kind_of


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Answers of one to seven tokens, of which the first is one of twelve."""
    found = made_up(1500, answer=8)
    for number, row in enumerate(found):
        if row["token_ids"]:
            row["token_ids"] = [number * number % 12, *([7] * (len(row["token_ids"]) - 1))]
            row["turn"] = (
                [0] * min(3, len(row["turn"])) + [1] * max(0, len(row["turn"]) - 3) if number % 3 else row["turn"]
            )
    return found


@pytest.fixture(scope="module")
def scores(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("made"), rows)


def answer(row: dict[str, Any]) -> tuple[Any, ...]:
    first = tuple(token for token, turn in zip(row["token_ids"], row["turn"], strict=True) if turn == row["turn"][0])
    return first if len(first) <= 8 else ("long", first[0])


GROUPS = {"source": lambda row: row["source"] or "", "answer": answer}


def kept(rows: list[dict[str, Any]], by: tuple[str, ...], share: float, least: int) -> set[str]:
    """By pandas: the top share of each group of at least `least`, of all others together, ties included."""
    table = pd.DataFrame({
        "key": [row["sample_key"] for row in rows],
        "vig": [row["vig"] for row in rows],
        "group": [str([GROUPS[name](row) for name in by]) for row in rows],
    })  # fmt: skip
    sizes = table.groupby("group")["vig"].transform("size")
    table.loc[sizes < least, "group"] = "the others"
    found: set[str] = set()
    for _, group in table.groupby("group"):
        many = max(1, math.floor(len(group) * share / 100 + 1e-9))
        found |= set(group[group["vig"] >= group["vig"].nlargest(many).min()]["key"])
    return found


@pytest.mark.parametrize("by", [("source",), ("answer",), ("source", "answer")])
@pytest.mark.parametrize(("share", "least"), [(70, 10), (30, 1), (12.5, 60)])
def test_each_group_keeps_its_best(
    by: tuple[str, ...], share: float, least: int, scores: str, rows: Any, tmp_path: Path
) -> None:
    found = select(scores, tmp_path, p=share, within=",".join(by), within_least=least)
    assert keys(selected(tmp_path)) == kept(scored(rows), by, share, least) | keys(text_only(rows))
    assert found.notes[0].startswith(f"ranked within {', '.join(by)}: ")


def test_tokens_have_the_threshold_of_their_group(scores: str, rows: Any, tmp_path: Path) -> None:
    select(scores, tmp_path, p=50, within="source")
    by_key = {row["sample_key"]: row for row in rows}
    best = {source: sorted((row["vig"] for row in scored(rows) if row["source"] == source), reverse=True)
            for source in ("coco", "vg", None)}  # fmt: skip
    for row in selected(tmp_path):
        of = by_key[row["sample_key"]]
        if of["vig"] is not None:
            tau = best[of["source"]][len(best[of["source"]]) // 2 - 1]
            gains = [clean - blur for clean, blur in zip(of["clean_logprobs"], of["blur_logprobs"], strict=True)]
            assert [bool(weight) for weight in row["token_weights"]] == [gain >= tau for gain in gains]


def test_cut_into_other_files_several_shares_and_chance(scores: str, rows: Any, tmp_path: Path) -> None:
    select(scores, tmp_path / "one", p=40, within="answer", seed=3)
    again = write(tmp_path / "cut", rows, files=7)
    select(again, tmp_path / "cut", p=40, within="answer", seed=3)
    assert selected(tmp_path / "one") == selected(tmp_path / "cut")
    several = select(scores, tmp_path / "several", p=(20, 40), within="answer")
    assert several.kept[1].counted.total("scored") == len(keys(selected(tmp_path / "one"))) - len(text_only(rows))
    select(scores, tmp_path / "chance", p=40, strategy="random", within="source")
    by_source = pd.Series([row["source"] or "" for row in scored(rows)]).value_counts()
    chosen = keys(selected(tmp_path / "chance"))
    for source, size in by_source.items():
        assert sum(row["sample_key"] in chosen for row in scored(rows) if (row["source"] or "") == source) == int(
            0.4 * size
        )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"within": "source", "quota": {"coco": 20}}, "--within and --quota both say what is ranked together"),
        ({"within": "source", "strategy": "full"}, "--within: has no effect with --strategy full"),
        ({"within_least": 3}, "--within-least: has no effect without --within"),
        ({"within": "question"}, "no samples/ beside them; --within question takes questions from there"),
        ({"within": "source", "strategy": "visnec"}, "or --within source,cluster"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], told: str, scores: str, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        select(scores, tmp_path, **options)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What color is it?", "what color"),
        ("Is there a dog?", "is there"),
        ("Why?", "why"),
        ("", ""),
        ('"How" many', "how many"),
    ],
)
def test_kinds_of_questions(question: str, kind: str) -> None:
    assert kind_of(question) == kind
