"""Qwen2.5-VL: patches as many as an image has, positions in time, height and width."""

from tests.tiny_models import write_qwen as make

__all__ = ["make"]
