"""Every command of the docs that is marked as run is run, page by page, as a reader would type it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks
from tests.docs.session import Session, copy_of, furnish, vig

SAMPLES = 160
SCORED = ("selecting.md", "trust.md", "looking.md", "training.md", "trainers.md", "pushing.md")
"""Pages that begin where docs/scoring.md ends: with runs/665k scored."""
LONG = ("scoring.md", "selecting.md", "trust.md", "looking.md", "training.md")
"""Those of the most commands, all of which have end-to-end tests of their own."""


def _pages() -> Iterator[object]:
    for page in PAGES:
        marks = {block.mark for block in blocks(page)}
        if marks & {"run", "cluster"}:
            kinds = [pytest.mark.cluster] if "cluster" in marks else []
            kinds += [pytest.mark.long] if page.name in LONG else []
            yield pytest.param(page, id=str(page.relative_to(ROOT)), marks=kinds)


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    furnish(folder, SAMPLES)
    return folder


@pytest.fixture(scope="module")
def scored(furnished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder with runs/665k as docs/scoring.md leaves it."""
    folder = copy_of(furnished, tmp_path_factory.mktemp("scored") / "reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VIG_SCORE_WORKERS", "1")
        patch.setenv("VIG_SCORE_PREPARE_WORKERS", "1")
        vig(
            ["score", "--data", "llava_v1_5_mix665k.json", "--images", "llava",
             "--model", "llava-hf/llava-1.5-7b-hf", "--out", "runs/665k",
             "--reference", "blur,blind"]
        )  # fmt: skip
    return folder


@pytest.mark.timeout(2400)  # some pages are many commands
@pytest.mark.parametrize("page", list(_pages()))
def test_the_commands_of_a_page_run(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest, local_ray: None
) -> None:
    start: Path = request.getfixturevalue("scored" if page.name in SCORED else "furnished")
    session = Session(copy_of(start, tmp_path / "reader"), forks=page.name != "README.md")
    try:
        for block in blocks(page):
            if block.mark in ("run", "cluster"):
                print(f"\n{block.place}\n{session.run(block)}")
    finally:
        session.close()
