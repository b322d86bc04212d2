"""Colours of gains: one scale for the report, its figures and the terminal.

Blue for what the image adds, orange for what it takes, which people with any colour blindness can tell apart; in pages
what it takes is underlined as well.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

STEPS = (0.1, 0.3, 1.0)
"""Token gains in nats from which the next stronger colour is taken; likewise downwards from their negatives."""
NAMES = ("m3", "m2", "m1", "zero", "p1", "p2", "p3")
"""Names of the seven colours, from what the image takes to what it adds; `page/gains.css` has their values."""
WORDS = ("≤ −1", "≤ −0.3", "≤ −0.1", "about 0", "≥ +0.1", "≥ +0.3", "≥ +1")

LIGHT = {
    "m3": "#b04a00", "m2": "#f0a868", "m1": "#fbe3cf", "zero": "#9a9fa8", "p1": "#d3e5f5", "p2": "#7db1e0",
    "p3": "#1f5fa8", "text": "#1b1b1f", "soft": "#5b5f68", "line": "#c9ccd3", "ground": "#ffffff",
}  # fmt: skip
"""The colours that figures are drawn in; a page with a dark background puts its own in their place."""
ON_COLOURS = dict.fromkeys(("m2", "m1", "p1", "p2"), "#10131a") | dict.fromkeys(("m3", "p3"), "#ffffff")
"""The colour of text on each of them, as in `page/gains.css`."""
TERMINAL = (
    "bold white on dark_orange3",
    "black on orange1",
    "black on wheat1",
    "",
    "black on light_sky_blue1",
    "black on sky_blue2",
    "bold white on dodger_blue3",
)


def step_of(gain: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The number of each gain's colour, 0 to 6, in the order of NAMES; 3 is about 0. Bounds have the stronger."""
    values = np.asarray(gain, dtype=np.float64)
    number: npt.NDArray[np.int64] = (
        np.searchsorted(STEPS, values, side="right") - np.searchsorted(STEPS, -values, side="right") + len(STEPS)
    )
    return number


def inline_style(name: str) -> str:
    """The CSS of a token whose gain has this colour, for HTML without a style sheet; "" about 0."""
    if name == "zero":
        return ""
    underlined = ";text-decoration:underline wavy 1px;text-underline-offset:.25em" if name.startswith("m") else ""
    return f"background:{LIGHT[name]};color:{ON_COLOURS[name]};border-radius:.2em{underlined}"
