"""The notebook in examples/ runs from its first cell to its last, and shows what is stored in it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.api.notebook import ROOT, executed, texts, without_digits

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def run(preforked: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return executed(NOTEBOOK, tmp_path_factory.mktemp("notebook"))


def test_it_shows_what_is_stored_in_it(run: Any) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert [without_digits(text) for text in texts(run)] == [without_digits(text) for text in texts(stored)]


def test_tokens_are_coloured_in_what_is_stored() -> None:
    html = "".join(texts(nbformat.read(NOTEBOOK, as_version=4)))
    for tag in ("b", "u"):
        assert re.search(
            rf'<{tag} style="background:#[0-9a-f]{{6}};color:#[0-9a-f]{{6}}[^"]*" title="[^"]*gain [+-]', html
        )
    assert 'src="data:image/jpeg;base64,' in html
    assert "read 60 = scored" in html
    assert "report.html" in html


def test_it_is_small_and_says_nothing_of_the_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000
    for secret in (tempfile.gettempdir(), str(Path.home()), str(NOTEBOOK.parents[1]), "site-packages"):
        assert secret not in text
    assert "stderr" not in text
