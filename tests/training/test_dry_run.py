"""`vig train --dry-run`: what would be trained, and nothing done."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.command import call, refused
from tests.docs.pages import ROOT
from vig_ray.demo import CHECKPOINT
from vig_ray.training.memory import Memory


def words(chosen: Path, out: Path, *more: str) -> list[str]:
    given = {"--model": CHECKPOINT, "--samples": str(chosen / "samples"), "--out": str(out)}
    return ["train", *(word for pair in given.items() for word in pair), "--dry-run", *more]


def test_what_would_be_trained_is_printed_and_nothing_written(chosen: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in chosen.rglob("*")}
    tower = ("--train", "tower,language,projector", "--tower-lr", "4e-6", "--held-out", "20", "--global-batch", "8")
    done = call(*words(chosen, out, *tower))
    *said, title, header, one, two, four, eight = done.stdout.splitlines()
    assert said == [
        "LlavaForConditionalGeneration    1.09 M",
        "  model                          1.01 M",
        "    vision_tower               407.10 K  tower      trained at 4e-6",
        "    multi_modal_projector       28.93 K  projector  trained at 2e-5",
        "    language_model             573.70 K  language   trained at 2e-5",
        "  lm_head                       81.28 K  language   trained at 2e-5",
        "1.09 M of 1.09 M parameters are trained",
        "300 samples, 20 held out; steps of up to 8 samples: 35",
    ]
    told = "memory of a GPU in MB (bfloat16, microbatches of 16,384 tokens, activations computed again):"
    assert title == told
    assert header.split() == ["workers", *Memory._fields[:-1], "all"]
    figures = [[float(cell.replace(",", "")) for cell in line.split()] for line in (one, two, four, eight)]
    assert [workers for workers, *_ in figures] == [1, 2, 4, 8]
    assert all(sum(parts) == pytest.approx(whole, abs=0.05) for _, *parts, whole in figures)
    assert figures[0][1] == pytest.approx(4 * 1.09, rel=0.01)  # float32, all of it trained
    selection = ("--selection", str(chosen / "selection"), "--epochs", "2", "--lora", "--global-batch", "16")
    *_, adapters, head, _, last = call(*words(chosen, out, *selection)).stdout.splitlines()[:-6]
    assert re.fullmatch(r"    language_model +[\d.]+ M  language   adapters of [\d.]+ K trained at 2e-4", adapters)
    assert head.endswith("frozen")
    count = int(last.split()[0])
    assert last == f"{count} samples; steps of up to 16 samples: {-(-2 * count // 16)}"
    assert not out.exists()
    assert before == {path: path.stat().st_mtime_ns for path in chosen.rglob("*")}


def test_what_the_docs_show_is_what_is_printed(chosen: Path, tmp_path: Path) -> None:
    printed = call(*words(chosen, tmp_path / "out", "--train", "projector,language,tower", "--tower-lr", "4e-6")).stdout
    assert f"```text\n{printed}```" in (ROOT / "docs" / "training.md").read_text()


def test_a_finished_or_foreign_folder_is_left_as_it_is(chosen: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("x")
    call(*words(chosen, tmp_path, "--overwrite"))
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "precious"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--train", "head"), "--train"),
        (("--train", "projector,head"), "--train"),
        (("--train", ""), "--train"),
        (("--lora", "--train", "projector"), "--lora puts adapters on the language model, which --train doesn't name"),
        (("--tower-lr", "1e-6"), "--tower-lr has no effect where --train doesn't name the tower"),
        (("--train", "language", "--projector-lr", "1e-6"), "--projector-lr has no effect where --train doesn't name"),
        (("--train", "tower", "--lr", "1e-6"), "--lr has no effect on what --train names"),
        (("--quantise", "nf4"), "--quantise freezes the language model's weights; it needs --lora"),
        (("--offload-optimizer", "--optimizer", "adamw8bit"), "--optimizer adamw8bit don't go together"),
        (("--held-out", "300"), "--held-out 300: there are only 300 samples"),
        (("--samples", "/no/such"), "/no/such"),
    ],
)
def test_what_contradicts_itself_is_one_line(chosen: Path, tmp_path: Path, more: tuple[str, ...], told: str) -> None:
    assert told in refused(*words(chosen, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_a_model_whose_parts_cannot_be_told_is_one_line(chosen: Path, tmp_path: Path) -> None:
    importlib.import_module("tests.model.families.llama4").make(str(tmp_path / "m"))
    told = refused(*words(chosen, tmp_path / "out", "--model", str(tmp_path / "m")))
    assert "Llama4ForConditionalGeneration: has no part that gives states without logits; it can't be trained" in told


def test_the_same_parts_in_another_order_are_the_same_run() -> None:
    from vig_ray.training.config import TrainConfig

    given = {"model": "m", "samples": "s", "out": "o"}
    one = TrainConfig(**given, train="tower, language")  # type: ignore[arg-type]
    assert one == TrainConfig(**given, train=("language", "tower", "tower"))
    assert one.train == ("language", "tower")
