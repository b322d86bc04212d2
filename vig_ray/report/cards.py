"""The gallery as HTML: one card a sample, its answer coloured by token gain; as many cards as the file may hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from vig_ray.report.colours import NAMES, WORDS, step_of
from vig_ray.report.format import source_name
from vig_ray.report.gallery import Gallery, Picture, Place, Shown, question_text
from vig_ray.tables.kept import kept_text

TITLES = {
    "highest": ("Highest VIG", "answers that need their images most"),
    "lowest": ("Lowest VIG", "answers that need their images least; where it is negative, they contradict them"),
    "nearest": ("Nearest to τ = {tau}", "what a slightly different threshold would take or leave"),
    "random": ("Random", "drawn by the hash of their keys"),
}


def gallery_html(gallery: Gallery, *, tau: str, budget: int) -> tuple[str, int]:
    """The filters and the groups' sections, with cards of at most `budget` bytes, and how many cards didn't fit.

    `tau`: the threshold as the heading says it. Cards of all sources are fitted in first, one of each group in turn,
    then those of single sources.
    """
    made: dict[str, dict[str, str]] = {name: {} for name in gallery.groups}
    left_out = 0
    for of_all in (True, False):
        waiting = {name: [p for p in places if p.of_all is of_all] for name, places in gallery.groups.items()}
        for turn in range(max((len(places) for places in waiting.values()), default=0)):
            for name, places in waiting.items():
                if turn >= len(places):
                    continue
                html = card(gallery.samples[places[turn].key], places[turn])
                size = len(html.encode())
                if size > budget:
                    left_out += 1
                    continue
                budget -= size
                made[name][places[turn].key] = html
    sections = []
    for name, places in gallery.groups.items():
        title, words = TITLES[name]
        cards = "\n".join(made[name][place.key] for place in places if place.key in made[name])
        heading = f"{title.format(tau=tau)}: {words}"
        sections.append(f'<section id="{name}"><h3>{escape(heading)}</h3>\n<div class="cards">{cards}</div></section>')
    keys = {key for cards in made.values() for key in cards}
    sources = {source_name(gallery.samples[key].row["source"]) for key in keys}
    return "\n".join([_controls(sorted(sources)), _legend(gallery), *sections]), left_out


def card(shown: Shown, place: Place) -> str:
    """The card of one sample."""
    row = shown.row
    source = source_name(row["source"])
    classes = "card" if place.of_all else "card more"
    parts = [
        f'<article class="{classes}" data-key="{escape(shown.key)}" data-source="{escape(source)}">',
        f"<h4>{escape(shown.key)}</h4>",
        f'<p class="numbers"><strong>{row["vig"]:+.3f}</strong> nats = loss {row["reference_loss"]:.3f} without the '
        f"image − {row['clean_loss']:.3f} with it · {escape(source)}{_badge(shown)}</p>",
        *([f'<p class="numbers kept">{escape(kept_text(row["kept"]))}</p>'] if row.get("kept") else []),
        *(_pair(picture) for picture in shown.pictures),
    ]
    if shown.more_pictures:
        parts.append(f'<p class="soft">and {shown.more_pictures:,} more images</p>')
    number = 0
    for turn in shown.conversation:
        if turn["role"] != "assistant":
            text = escape(question_text(turn["text"]))
            parts.append(f'<p class="turn asked" data-role="{escape(turn["role"])}">{text}</p>')
            continue
        if number in row["turn"]:
            parts.append(_answer(shown, number))
        else:
            parts.append(f'<p class="turn asked" data-role="assistant, not scored">{escape(turn["text"])}</p>')
        number += 1
    if not number:
        parts += [_answer(shown, turn) for turn in sorted(set(row["turn"]))]
    if row["num_truncated_tokens"]:
        parts.append(f'<p class="soft">{row["num_truncated_tokens"]:,} tokens cut off by the length limit</p>')
    return "\n".join([*parts, _table(shown), "</article>"])


def _badge(shown: Shown) -> str:
    if shown.kept is None:
        return ""
    if not shown.kept:
        return ' <span class="badge">left out</span>'
    if shown.weights is None:
        return ' <span class="badge">kept</span>'
    active = sum(weight > 0 for weight in shown.weights)
    return f' <span class="badge">kept, {active} of {len(shown.weights)} tokens active</span>'


def _pair(picture: Picture) -> str:
    if picture.clear is None:
        return f'<p class="warning">The image can\'t be shown: {escape(picture.error or "")}</p>'
    figures = [f'<figure><img src="{picture.clear}" alt="the image"><figcaption>with</figcaption></figure>']
    if picture.blurred is not None:
        figures.append(
            f'<figure><img src="{picture.blurred}" alt="the image, blurred"><figcaption>without: blurred</figcaption>'
            "</figure>"
        )
    return f'<div class="pair">{"".join(figures)}</div>'


def _answer(shown: Shown, turn: int) -> str:
    spans = []
    for at, of_turn in enumerate(shown.row["turn"]):
        if of_turn != turn:
            continue
        name = NAMES[int(step_of(shown.gain[at]))]
        classes = ["token", *([] if name == "zero" else [name])]
        tooltip = f"{shown.pieces[at].strip() or shown.pieces[at]!r}: gain {shown.gain[at]:+.3f} nats"
        if shown.weights is not None:
            classes += ["masked"] if shown.weights[at] == 0 else []
            tooltip += f", weight {shown.weights[at]:.3g}"
        text = escape(shown.pieces[at])
        spans.append(f'<span class="{" ".join(classes)}" title="{escape(tooltip)}">{text}</span>')
    return f'<p class="turn answer" data-role="assistant">{"".join(spans)}</p>'


def _table(shown: Shown) -> str:
    rows = []
    values = zip(shown.pieces, shown.gain, shown.row["clean_logprobs"], shown.row["reference_logprobs"], strict=True)
    for piece, gain, clean, reference in values:
        rows.append(
            f"<tr><td><code>{escape(repr(piece)[1:-1])}</code><td>{gain:+.3f}<td>{clean:.3f}<td>{reference:.3f}"
            f"<td>{100 * math.exp(min(clean, 0)):.1f} %<td>{100 * math.exp(min(reference, 0)):.1f} %"
        )
    head = "<tr><th>token<th>gain<th>log-prob with<th>without<th>probability with<th>without"
    return (
        f'<details><summary>{len(rows)} tokens</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="tokens"><table>{head}{"".join(rows)}</table></div></details>'
    )


def _legend(gallery: Gallery) -> str:
    steps = "".join(
        f'<span class="{"" if name == "zero" else name}">{words}</span>'
        for name, words in reversed(list(zip(NAMES, WORDS, strict=True)))
    )
    masked = any(shown.weights is not None for shown in gallery.samples.values())
    note = ' <span class="token masked">grey: not trained on</span>' if masked else ""
    return f'<div class="legend" role="group" aria-label="Legend">token gain, nats: {steps}{note}</div>'


def _controls(sources: Sequence[str]) -> str:
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in sources)
    groups = "".join(
        f'<option value="{name}">{escape(title.split(" to ")[0])}</option>' for name, (title, _) in TITLES.items()
    )
    return (
        '<div class="controls"><label>Group<select id="group"><option value="">all four</option>'
        f'{groups}</select></label><label>Source<select id="source"><option value="">all sources</option>{options}'
        '</select></label><label>Question or answer contains<input id="search" type="search" placeholder="red circle">'
        '</label><span class="soft" id="found" role="status"></span></div>'
    )
