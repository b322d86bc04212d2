"""`vig inspect KEY`: one sample in the terminal, its answer coloured by token gain, with both log-probs a token.

In a notebook the same sample shows itself as HTML, with its images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vig_ray.dataset.images import MAX_PIXELS
from vig_ray.dataset.schema import KEPT
from vig_ray.errors import StageError
from vig_ray.options import ScoredUnder
from vig_ray.report.colours import TERMINAL, WORDS, step_of
from vig_ray.report.detokenize import load_tokenizer, token_texts
from vig_ray.report.gallery import PICTURES, picture
from vig_ray.report.sample_html import sample_html
from vig_ray.scoring.gain import token_gain
from vig_ray.stage import StageConfig, read_stage
from vig_ray.tables.directories import rows_of, samples_beside, scores_directory
from vig_ray.tables.kept import kept_text
from vig_ray.tables.passes import View

_SIDE = 256  # of images, pixels
_WIDTH = 100
_COLUMNS = [
    "source", "vig", "clean_loss", "reference_loss", "token_ids", "clean_logprobs", "reference_logprobs", "turn",
    "error",
]  # fmt: skip


class InspectConfig(StageConfig):
    """Show one sample: its answer coloured by token gain, and each token's log-probs."""

    key: str = Field(description="the sample's key, as `vig top` prints it", json_schema_extra={"positional": True})
    scores: str = Field(description="scores/ of a `vig score`, or the directory that holds it")
    reference: ScoredUnder = None
    samples: str | None = Field(None, description="samples/ to show the questions from; by default beside the scores")
    model: str | None = Field(None, description="checkpoint whose tokenizer spells the tokens; by default the scores'")


@dataclass(frozen=True, repr=False)
class Inspected:
    """One sample, ready to be printed. `pieces`: the text of each answer token.

    `reference`: what its gains are under. `samples`: where its images are, None where nobody knows.
    """

    row: dict[str, Any]
    pieces: list[str]
    conversation: list[dict[str, str]]
    reference: str = "blur"
    samples: str | None = None

    def __repr__(self) -> str:
        return self._printed(Console(force_terminal=False, force_jupyter=False, color_system=None, width=_WIDTH))

    def _repr_html_(self) -> str:
        """For notebooks."""
        key = self.row["sample_key"]
        images = rows_of(self.samples, [key], ["images"])[key]["images"] or [] if self.samples is not None else []
        pictures = [picture(image, self.reference == "blur", _SIDE, MAX_PIXELS) for image in images[:PICTURES]]
        gain = self.gain.tolist() if self.pieces else []
        return sample_html(self.row, self.pieces, gain, self.conversation, pictures)

    @property
    def gain(self) -> npt.NDArray[np.float64]:
        """The gain of each answer token, nats, float64 [T]."""
        return token_gain(self.row["clean_logprobs"], self.row["reference_logprobs"])

    def text(self) -> str:
        """As text for a terminal; without colours where standard output isn't one."""
        return self._printed(Console())

    def _printed(self, console: Console) -> str:
        with console.capture() as captured:
            console.print(self.render())
        return captured.get().rstrip("\n")

    def render(self) -> Group:
        """Its summary, its conversation and its tokens."""
        row = self.row
        parts: list[Any] = [Text(f"{row['sample_key']}  {row['source'] or ''}".rstrip(), style="bold")]
        if row.get("kept"):
            parts.append(Text(kept_text(row["kept"]), style="dim"))
        if row["vig"] is None:
            parts.append(Text(f"no score: {row['error'] or 'text-only'}"))
            return Group(*parts)
        parts.append(
            Text(
                f"VIG {row['vig']:+.4f} nats = loss without the image {row['reference_loss']:.4f} "
                f"- with it {row['clean_loss']:.4f}"
            )
        )
        gain = self.gain
        answers = [turn for turn in self.conversation if turn["role"] == "assistant"]
        if answers:
            number = 0
            for turn in self.conversation:
                if turn["role"] == "assistant":
                    parts.append(Text("assistant: ", style="dim") + self._coloured(gain, number))
                    number += 1
                else:
                    parts.append(Text(f"{turn['role']}: {turn['text']}", style="dim"))
        else:
            parts += [self._coloured(gain, turn) for turn in sorted(set(row["turn"]))]
        return Group(*parts, Text(), _legend(), Text(), self._table(gain))

    def _coloured(self, gain: Any, turn: int) -> Text:
        text = Text()
        for piece, value, of_turn in zip(self.pieces, gain, self.row["turn"], strict=True):
            if of_turn == turn:
                text.append(piece, style=_style(value))
        return text

    def _table(self, gain: Any) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("token")
        for name in ("gain", "with image", "without"):
            table.add_column(name, justify="right")
        rows = zip(self.pieces, gain, self.row["clean_logprobs"], self.row["reference_logprobs"], strict=True)
        for piece, value, clean, reference in rows:
            table.add_row(
                Text(repr(piece)[1:-1]), Text(f"{value:+.3f}", _style(value)), f"{clean:.3f}", f"{reference:.3f}"
            )
        return table


def _style(gain: float) -> str:
    return TERMINAL[int(step_of(gain))]


def _legend() -> Text:
    text = Text("gain, nats: ")
    for style, name in zip(TERMINAL, WORDS, strict=True):
        text.append(f" {name} ", style=style)
    return text


def run(config: InspectConfig) -> Inspected:
    """Read the sample. Raises StageError where no sample has that key, or there is no tokenizer."""
    scores = scores_directory(config.scores)
    record = read_stage(scores) or {}
    view = View.of(record, scores, config.reference)
    columns = [*_COLUMNS, *([KEPT.name] if record.get("kept") else [])]
    rows = rows_of(scores, [config.key], columns, view)
    if config.key not in rows:
        raise StageError(f"{config.key}: no such sample in {scores}; `vig top --scores ...` prints keys")
    row = rows[config.key]
    conversation = []
    samples = samples_beside(scores, config.samples, record)
    if samples is not None:
        conversation = rows_of(samples, [config.key], ["conversation"])[config.key]["conversation"]
    if row["vig"] is None:
        return Inspected(row, [], conversation, view.reference, samples)
    model = config.model or record["config"]["model"]
    pieces = token_texts(load_tokenizer(model), row["token_ids"], row["turn"])
    return Inspected(row, pieces, conversation, view.reference, samples)
