"""A small world whose visual tokens are known, and a small aligned model that sees it."""

from __future__ import annotations

import os

CHECKPOINT = os.path.join(os.path.dirname(__file__), "checkpoint")
"""The packaged demo model: a LLaVA-1.5 in small, written by `python -m vig_ray.demo.build`."""

HARD_CHECKPOINT = os.path.join(os.path.dirname(__file__), "hard_checkpoint")
"""That of the harder look, written by `python -m vig_ray.demo.build --look hard`."""
