"""Images in archives, for trainers that read files."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.archived import Archived
from vig_ray.dataset.members import members
from vig_ray.selection import export
from vig_ray.selection.export import ExportDataConfig


def test_images_in_an_archive_are_written_out(chosen: Path, tmp_path: Path) -> None:
    copy, archive = tmp_path / "copy", tmp_path / "images.zip"
    shutil.copytree(chosen, copy)
    originals: dict[str, list[bytes]] = {}
    tables: dict[Path, list[dict[str, Any]]] = {}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in (copy / "samples").glob("*.parquet"):
            tables[path] = pq.read_table(path).to_pylist()
            for row in tables[path]:
                originals[row["sample_key"]] = [Path(image["uri"]).read_bytes() for image in row["images"]]
                for image in row["images"]:
                    if image["uri"].strip("/") not in zipped.namelist():
                        zipped.write(image["uri"])
    there = {member.name: member for member in members(str(archive), "zip", archive.stat().st_size)}
    for path, rows in tables.items():
        for row in rows:
            for image in row["images"]:
                member = there[image["uri"].strip("/")]
                image["uri"] = Archived(str(archive), "zip", member.offset, member.size, member.name).uri
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    out = tmp_path / "out.jsonl"
    export.run(ExportDataConfig(selection=str(copy), samples=str(copy / "samples"), out=str(out)))
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert any(row["images"] for row in found)
    for row in found:
        assert [Path(path).read_bytes() for path in row["images"]] == originals[row["sample_key"]]
        assert all(Path(path).suffix == ".png" for path in row["images"])
