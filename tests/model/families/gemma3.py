"""Gemma 3: sliding windows, and images that see both ways."""

from tests.tiny_models import write_gemma as make

__all__ = ["make"]
