"""Colours of gains: one scale for the report, its figures and the terminal.

Blue for what the image adds, orange for what it takes: told apart with every kind of colour blindness; in pages what
it takes is underlined besides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

STEPS = (0.1, 0.3, 1.0)
"""Token gains, nats, from which a stronger colour is taken; below their negatives, too."""
NAMES = ("m3", "m2", "m1", "zero", "p1", "p2", "p3")
"""Of the seven colours, from what the image takes to what it adds; `page/gains.css` has their values."""
WORDS = ("≤ −1", "≤ −0.3", "≤ −0.1", "about 0", "≥ +0.1", "≥ +0.3", "≥ +1")

LIGHT = {
    "m3": "#b04a00", "m2": "#f0a868", "m1": "#fbe3cf", "zero": "#9a9fa8", "p1": "#d3e5f5", "p2": "#7db1e0",
    "p3": "#1f5fa8", "text": "#1b1b1f", "soft": "#5b5f68", "line": "#c9ccd3", "ground": "#ffffff",
}  # fmt: skip
"""What figures are drawn with; a page that shows them in the dark puts its own in their place."""
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
    """The number of each gain's colour, 0 to 6, in the order of NAMES; 3 is about 0. Bounds belong to the stronger."""
    values = np.asarray(gain, dtype=np.float64)
    found: npt.NDArray[np.int64] = (
        np.searchsorted(STEPS, values, side="right") - np.searchsorted(STEPS, -values, side="right") + len(STEPS)
    )
    return found
