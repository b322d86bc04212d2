"""The tiny CLIP, once for all tests of measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measuring.tiny_clip import write_clip


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return str(folder)
