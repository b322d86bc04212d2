"""`vig inspect`: the right sample, its tokens' text, and colours that go by gain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests import tiny_models
from tests.command import call
from tests.selection.made import made_up, write
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.report import PAGE, inspect
from vig_ray.report.colours import NAMES, inline_style, step_of
from vig_ray.report.detokenize import token_texts
from vig_ray.report.inspect import InspectConfig


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return made_up(60, seed=4)


@pytest.fixture(scope="module")
def scores(rows: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("made"), rows)


def test_it_shows_the_sample_that_was_asked_for(scores: str, rows: Any) -> None:
    row = next(row for row in rows if row["vig"] is not None and row["num_answer_tokens"] > 3)
    text = inspect.run(InspectConfig(key=row["sample_key"], scores=scores, model=CHECKPOINT)).text()
    assert row["sample_key"] in text
    assert f"VIG {row['vig']:+.4f}" in text
    for clean, reference in zip(row["clean_logprobs"], row["blur_logprobs"], strict=True):
        assert f"{clean - reference:+.3f}" in text
        assert f"{clean:.3f}" in text
        assert f"{reference:.3f}" in text


def test_colours_go_by_gain(scores: str, rows: Any) -> None:
    row = next(row for row in rows if row["vig"] is not None and row["num_answer_tokens"] > 5)
    shown = inspect.run(InspectConfig(key=row["sample_key"], scores=scores, model=CHECKPOINT))
    console = Console(force_terminal=True, color_system="256", width=100)
    with console.capture() as captured:
        console.print(shown.render())
    assert "\x1b[" in captured.get()
    assert inspect._style(5) == inspect._style(1.0) != inspect._style(0.5)
    assert inspect._style(0.0) == inspect._style(-0.05) == ""
    assert inspect._style(-5) != inspect._style(-0.5) != inspect._style(0)


def test_html_colours_go_by_gain_without_a_style_sheet(scores: str, rows: Any) -> None:
    row = next(row for row in rows if row["vig"] is not None and row["num_answer_tokens"] > 5)
    shown = inspect.run(InspectConfig(key=row["sample_key"], scores=scores, model=CHECKPOINT))
    html = shown._repr_html_()
    values = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", (PAGE / "gains.css").read_text().partition("@media")[0]))
    for name in NAMES:
        if name != "zero":  # as the report's pages have them
            assert inline_style(name).startswith(f"background:{values[name]};color:{values[name + 't']}")
    spans = re.findall(r'<(b|u|span) style="([^"]*)" title="[^"]*gain ([+-][\d.]+) nats"', html)
    assert len(spans) == row["num_answer_tokens"]
    for (tag, style, gain), clean, blur in zip(spans, row["clean_logprobs"], row["blur_logprobs"], strict=True):
        assert float(gain) == pytest.approx(clean - blur, abs=6e-4)
        step = int(step_of(clean - blur))
        assert style == inline_style(NAMES[step])
        assert tag == ("u" if step < 3 else "b" if step == 6 else "span")


def test_html_says_what_the_data_says_and_nothing_of_it_runs(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    row = {
        "sample_key": evil, "source": evil, "vig": 0.5, "error": None, "clean_loss": 1.0, "reference_loss": 1.5,
        "clean_logprobs": [-1.0, -1.0], "reference_logprobs": [-3.0, -0.5], "turn": [0, 0],
    }  # fmt: skip
    conversation = [{"role": evil, "text": evil}, {"role": "assistant", "text": evil}]
    html = inspect.Inspected(row, [evil, evil], conversation)._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    failed = {**row, "vig": None, "error": evil}
    assert "<script" not in inspect.Inspected(failed, [], conversation)._repr_html_()


def test_failed_and_text_only_samples_say_so(scores: str, rows: Any) -> None:
    failed = next(row for row in rows if row["error"])
    text_only = next(row for row in rows if row["vig"] is None and not row["error"])
    assert "FileNotFoundError: gone" in inspect.run(InspectConfig(key=failed["sample_key"], scores=scores)).text()
    assert "text-only" in inspect.run(InspectConfig(key=text_only["sample_key"], scores=scores)).text()


def test_unknown_keys_and_models_are_one_line(scores: str, rows: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no such sample"):
        inspect.run(InspectConfig(key="made/none", scores=scores))
    scored = next(row for row in rows if row["vig"] is not None)
    with pytest.raises(StageError, match=r"no config\.json in this folder"):
        inspect.run(InspectConfig(key=scored["sample_key"], scores=scores, model=str(tmp_path)))


@pytest.mark.parametrize("kind", ["first", "always", "legacy", "bytes"])
def test_pieces_joined_are_the_text(kind: str) -> None:
    """Characters of several byte tokens come whole, with the last of them."""
    tokenizer = tiny_models.sentencepiece_like(kind)
    answers = ["Où est le café? 😀 ok", "No.", "红色的圆"]
    ids, turns, texts = [], [], []
    for turn, answer in enumerate(answers):
        own = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids += own
        turns += [turn] * len(own)
        texts.append(tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    pieces = token_texts(tokenizer, ids, turns)
    assert len(pieces) == len(ids)
    for turn, text in enumerate(texts):
        assert "".join(piece for piece, of in zip(pieces, turns, strict=True) if of == turn) == text


def test_on_the_command_line(scores: str, rows: Any) -> None:
    row = next(row for row in rows if row["vig"] is not None)
    done = call("inspect", row["sample_key"], "--scores", scores, "--model", CHECKPOINT)
    assert "\x1b" not in done.stdout
    assert row["sample_key"] in done.stdout
