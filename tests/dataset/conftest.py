"""Writing small datasets, importing them, and reading back what came out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from tests.hub import Hub, hub
from vig_ray.dataset.importing import ImportConfig, ImportReport, run

Rows = list[dict[str, Any]]


def llava_row(number: int = 0, image: str | None = "coco/train2017/1.jpg") -> dict[str, Any]:
    question = f"What is in picture {number}?"
    row: dict[str, Any] = {
        "id": f"row-{number}",
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}" if image else question},
            {"from": "gpt", "value": f"A bus, number {number}."},
        ],
    }
    if image:
        row["image"] = image
    return row


def png(*rows: list[tuple[int, int, int]]) -> bytes:
    """A PNG file of the given rows of RGB pixels."""
    out = io.BytesIO()
    PIL.Image.fromarray(np.array(rows, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def read_samples(directory: str | Path) -> Rows:
    found: Rows = []
    for part in sorted(Path(directory).glob("*.parquet")):
        found += pq.read_table(part).to_pylist()
    return found


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


class Workbench:
    """One test's folder: `data` in, `out/samples` out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.report: ImportReport | None = None

    def write(self, name: str, content: bytes | str | list[Any]) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def load(self, *data: str | Path, **options: Any) -> Rows:
        """Import `data` and give back the rows of samples/, checking that the counts add up."""
        config = ImportConfig(data=tuple(map(str, data)), out=str(self.out), **options)
        self.report = report = run(config)
        rows = read_samples(report.directory)
        failed = sum(row["error"] is not None for row in rows)
        pictured = sum(row["error"] is None and bool(row["images"]) for row in rows)
        assert (report.read, report.failed, report.with_images) == (len(rows), failed, pictured)
        assert report.imported == report.text_only + report.with_images == report.read - report.failed
        assert sum(report.failures.values()) == failed
        assert len({row["sample_key"] for row in rows}) == len(rows)
        return rows

    def one(self, row: Any, **options: Any) -> dict[str, Any]:
        """The sample that a single row, as a JSON array, becomes."""
        (sample,) = self.load(self.write("data.json", [row]), overwrite=True, **options)
        return sample


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[Hub]:
    with hub(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def make_row() -> Callable[..., dict[str, Any]]:
    return llava_row


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    return png


@pytest.fixture
def make_tar() -> Callable[..., Path]:
    return write_tar
