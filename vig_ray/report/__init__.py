"""For people to look at: samples, tokens and their gains."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent / "page"
"""The report's page, and the colours of gains that other pages take from it."""
