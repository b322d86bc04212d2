"""One sample as HTML that stands anywhere: in a notebook, on a page that drops style sheets and scripts.

All style is in the elements themselves. Where a reader drops that too, tokens of the highest gain are still bold, and
those that the image made less likely underlined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vig_ray.report.colours import NAMES, WORDS, inline_style, step_of
from vig_ray.report.gallery import Picture, question_text

_SOFT = "color:#7c828d"
_TEXT = "margin:.3em 0;white-space:pre-wrap;line-height:1.7"
_NUMBERS = "text-align:right;padding:0 .6em"
_SHOWN_SIDE = 256


def sample_html(
    row: Mapping[str, Any],
    pieces: Sequence[str],
    gain: Sequence[float],
    conversation: Sequence[Mapping[str, str]],
    pictures: Sequence[Picture],
) -> str:
    """A sample with its images, its conversation with answers coloured by token gain, and its tokens' numbers.

    `row`: its scores. `pieces`, `gain`: text and gain (nats) of each answer token; empty where it has no score.
    """
    source = f' <span style="{_SOFT}">{escape(row["source"])}</span>' if row["source"] else ""
    parts = [f'<p style="margin:.3em 0"><b>{escape(row["sample_key"])}</b>{source}<br>{_score(row)}</p>']
    parts += [_picture(picture) for picture in pictures]
    number = 0
    for turn in conversation:
        if turn["role"] == "assistant" and pieces and number in row["turn"]:
            parts.append(_said("assistant", _coloured(row, pieces, gain, number)))
        else:
            parts.append(_said(turn["role"], escape(question_text(turn["text"]))))
        number += turn["role"] == "assistant"
    if pieces:
        if not number:  # without samples/ there is no conversation
            parts += [_said("assistant", _coloured(row, pieces, gain, turn)) for turn in sorted(set(row["turn"]))]
        parts += [_legend(), _table(row, pieces, gain)]
    return f'<div style="max-width:60em">{"".join(parts)}</div>'


def _score(row: Mapping[str, Any]) -> str:
    if row["vig"] is None:
        return f"no score: {escape(row['error'] or 'text-only')}"
    return (
        f"VIG <b>{row['vig']:+.4f}</b> nats = loss without the image {row['reference_loss']:.4f} − with it "
        f"{row['clean_loss']:.4f}"
    )


def _picture(picture: Picture) -> str:
    if picture.clear is None:
        return f'<p style="{_SOFT}">The image can\'t be shown: {escape(picture.error or "")}</p>'
    shown = [(picture.clear, "the image")] + ([(picture.blurred, "the image, blurred")] if picture.blurred else [])
    images = " ".join(
        f'<img src="{source}" alt="{words}" title="{words}" style="max-width:{_SHOWN_SIDE}px;display:inline-block">'
        for source, words in shown
    )
    return f'<p style="margin:.3em 0">{images}</p>'


def _said(role: str, html: str) -> str:
    return f'<p style="{_TEXT}"><span style="{_SOFT}">{escape(role)}:</span> {html}</p>'


def _coloured(row: Mapping[str, Any], pieces: Sequence[str], gain: Sequence[float], turn: int) -> str:
    return "".join(
        _token(escape(piece), value, f"{piece.strip() or piece!r}: gain {value:+.3f} nats")
        for piece, value, of_turn in zip(pieces, gain, row["turn"], strict=True)
        if of_turn == turn
    )


def _token(html: str, gain: float, tooltip: str) -> str:
    name = NAMES[int(step_of(gain))]
    tag = "b" if name == "p3" else "u" if name.startswith("m") else "span"
    return f'<{tag} style="{inline_style(name)}" title="{escape(tooltip)}">{html}</{tag}>'


def _legend() -> str:
    steps = " ".join(
        f'<span style="{inline_style(name)};padding:0 .4em">{words}</span>'
        for name, words in zip(NAMES, WORDS, strict=True)
    )
    return f'<p style="margin:.3em 0;font-size:85%"><span style="{_SOFT}">token gain, nats:</span> {steps}</p>'


def _table(row: Mapping[str, Any], pieces: Sequence[str], gain: Sequence[float]) -> str:
    rows = []
    values = zip(pieces, gain, row["clean_logprobs"], row["reference_logprobs"], strict=True)
    for piece, value, clean, reference in values:
        numbers = "".join(f'<td style="{_NUMBERS}">{text}</td>' for text in (f"{clean:.3f}", f"{reference:.3f}"))
        rows.append(
            f'<tr><td style="text-align:left"><code>{escape(repr(piece)[1:-1])}</code></td>'
            f'<td style="{_NUMBERS}">{_token(f"{value:+.3f}", value, "")}</td>{numbers}</tr>'
        )
    head = "".join(f'<th style="{_NUMBERS}">{name}</th>' for name in ("gain", "log-prob with image", "without"))
    return (
        f'<details><summary style="{_SOFT}">{len(rows)} tokens</summary><table><tr><th>token</th>{head}</tr>'
        f"{''.join(rows)}</table></details>"
    )
