"""Datasets of the hub, through a stand-in: what `datasets.load_dataset` gives of the same repository is the oracle."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, HfFileSystem, constants

from tests.dataset.conftest import llava_row, read_samples
from tests.hub import Hub
from vig_ray.dataset.images import image_bytes
from vig_ray.dataset.importing import ImportConfig, run, validate
from vig_ray.dataset.listing import find
from vig_ray.dataset.spec import parse
from vig_ray.errors import StageError
from vig_ray.stage import read_stage

PICTURE = b"\xff\xd8 a picture"
REPOSITORY = "hf://datasets/org/set"


def parquet(*numbers: int, image: str | None = None) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([llava_row(number, image) for number in numbers]), out)
    return out.getvalue()


def lines(*numbers: int) -> str:
    return "".join(json.dumps(llava_row(number, None)) + "\n" for number in numbers)


CARD = """---
configs:
- config_name: ocr
  data_files:
  - split: train
    path: ocr/train-*.parquet
  - split: test
    path: ocr/test.parquet
- config_name: vqa
  data_dir: vqa
- config_name: chart
  default: true
  data_files: [charts/b.parquet, charts/a.parquet]
---
# A set
"""
FILES: dict[str, bytes | str] = {
    "README.md": CARD,
    "ocr/train-00000-of-00002.parquet": parquet(0, 1),
    "ocr/train-00001-of-00002.parquet": parquet(2),
    "ocr/test.parquet": parquet(3),
    "vqa/train-0.parquet": parquet(4),
    "vqa/x/train-1.parquet": parquet(5),
    "vqa/validation.parquet": parquet(6, 7),
    "charts/a.parquet": parquet(8),
    "charts/b.parquet": parquet(9),
    "left/over.parquet": parquet(10),
}


def ids(rows: Any) -> list[str]:
    return [row["id"] for row in rows]


def of_datasets(name: str | None, split: str, path: str = "org/set", **options: Any) -> list[str]:
    return ids(datasets.load_dataset(path, name, split=split, streaming=True, **options))


def test_configs_and_splits_as_datasets_reads_them(hub_server: Hub, bench: Any) -> None:
    """The same rows in the same order, from the hub and from a local copy; keys carry the path."""
    hub_server.commit("org/set", FILES)
    local = bench.folder / "set"
    for name in FILES:
        bench.write(f"set/{name}", FILES[name])
    for where in (REPOSITORY, str(local)):
        for config, split in [
            ("ocr", "train"),
            ("ocr", "test"),
            ("vqa", "train"),
            ("vqa", "validation"),
            ("chart", "train"),
        ]:
            rows = bench.load(f"{where}:{config}:{split}", overwrite=True)
            assert ids(rows) == of_datasets(config, split), (where, config, split)
        assert ids(bench.load(f"{where}:ocr", overwrite=True)) == ["row-0", "row-1", "row-2"]
        assert ids(bench.load(f"{where}:chart,ocr:*", overwrite=True)) == [f"row-{n}" for n in (0, 1, 2, 3, 9, 8)]
        assert ids(bench.load(f"{where}:[co]*", overwrite=True)) == [f"row-{n}" for n in (0, 1, 2, 9, 8)]
        rows = bench.load(where, overwrite=True)
        assert ids(rows) == [f"row-{n}" for n in (0, 1, 2, 4, 5, 9, 8)]
        assert [row["sample_key"] for row in rows][2:5] == [
            "set/ocr/train-00001-of-00002/0000000000",
            "set/vqa/train-0/0000000000",
            "set/vqa/x/train-1/0000000000",
        ]
        record = read_stage(str(bench.out / "samples"))
        assert record is not None
        assert [what.partition(": ")[2] for what in record["left_out"]] == [
            "split test: 1 files", "split validation: 1 files", "in no split: left/over.parquet",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        ["train/b.parquet", "train/a.parquet", "valid/c.parquet"],
        ["b.parquet", "a/c.parquet", "a.parquet"],
        ["my_train.parquet", "my_dev.parquet", "deep/training_2.parquet"],
        ["data/odd-00000-of-00001.parquet"],
    ],
)
def test_splits_by_names(names: list[str], hub_server: Hub, bench: Any) -> None:
    sha = hub_server.commit("org/set", {name: parquet(number) for number, name in enumerate(names)})
    for split in datasets.get_dataset_split_names("org/set", revision=sha):
        rows = bench.load(f"{REPOSITORY}::{split}", overwrite=True)
        assert ids(rows) == of_datasets(None, split, revision=sha)


def test_a_table_beside_its_images(hub_server: Hub, bench: Any) -> None:
    """Archives named after splits, and more of them than tables, don't hide the table."""
    tar = io.BytesIO()
    tarfile.open(fileobj=tar, mode="w:gz").close()
    files: dict[str, Any] = {f"images/shard_{number}.tar.gz": tar.getvalue() for number in range(3)}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("train2017/1.jpg", PICTURE)
    files |= {
        "coco/train2017.zip": zipped.getvalue(),
        "llava.json": json.dumps([llava_row(3)]),
        "README.md": "# Nothing declared",
    }
    sha = hub_server.commit("org/set", files)
    (row,) = bench.load(REPOSITORY)
    assert row["sample_key"] == "set/llava/0000000000"
    (image,) = row["images"]
    assert image["uri"].startswith(f"{REPOSITORY}@{sha}/coco/train2017.zip#zip=")
    assert image_bytes(image) == PICTURE
    listing = find(parse(REPOSITORY), "auto")
    assert listing.archives == [
        f"{REPOSITORY}@{sha}/{name}"
        for name in ("coco/train2017.zip", *(f"images/shard_{number}.tar.gz" for number in range(3)))
    ]


def test_paths_and_patterns_in_a_repository(hub_server: Hub, bench: Any) -> None:
    hub_server.commit("org/set", FILES)
    (row,) = bench.load(f"{REPOSITORY}/ocr/test.parquet")
    assert (row["sample_key"], row["id"]) == ("test/0000000000", "row-3")
    rows = bench.load(f"{REPOSITORY}/**/train-*.parquet", name="n", overwrite=True)
    expected = sorted(name for name in FILES if name.rpartition("/")[2].startswith("train-"))
    assert list(dict.fromkeys(row["sample_key"][:-11] for row in rows)) == [f"n/{name[:-8]}" for name in expected]
    assert ids(bench.load(f"{REPOSITORY}/charts", overwrite=True)) == ["row-8", "row-9"]


def test_the_commit_is_part_of_what_was_imported(hub_server: Hub, bench: Any) -> None:
    first = hub_server.commit("org/set", {"d.jsonl": lines(0)}, tag="v1")
    assert ids(bench.load(REPOSITORY)) == ["row-0"]
    record = read_stage(str(bench.out / "samples"))
    assert record is not None
    assert record["inputs"] == [{"path": f"{REPOSITORY}@{first}/d.jsonl", "size": len(lines(0)), "mtime_ns": None}]
    second = hub_server.commit("org/set", {"d.jsonl": lines(1)})
    with pytest.raises(StageError, match=r"holds another run of `vig import` \(inputs differ\)"):
        bench.load(REPOSITORY)
    for revision in ("v1", first, first, "v1"):  # all of them the first commit, already there
        before = len(hub_server.asked)
        assert ids(bench.load(f"{REPOSITORY}@{revision}")) == ["row-0"]
        assert not any("/resolve/" in asked and "d.jsonl" in asked for asked in hub_server.asked[before:])
    assert ids(bench.load(f"{REPOSITORY}@{second}", overwrite=True)) == ["row-1"]


def test_listings_in_pages(tmp_path: Path, hub_server: Hub, bench: Any) -> None:
    hub_server.page = 7
    hub_server.commit("org/set", {f"x{number % 3}/{number:02d}.jsonl": lines(number) for number in range(40)})
    expected = of_datasets(None, "train")
    assert len(expected) == 40
    HfFileSystem.clear_instance_cache()
    assert ids(bench.load(REPOSITORY)) == expected
    listed = [entry.path for entry in HfApi().list_repo_tree("org/set", repo_type="dataset", recursive=True)]
    assert len(listed) == 43


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.json.gz", "d.tar", "d.tar.gz"])
def test_streams(name: str, hub_server: Hub, bench: Any) -> None:
    """Each file is asked for once as a whole, beside the look at the head of one called .json."""
    data: bytes = lines(*range(50)).encode()
    if ".json" in name and ".jsonl" not in name:
        data = json.dumps([llava_row(number, None) for number in range(50)]).encode()
    if ".tar" in name:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for number in range(50):
                for suffix, content in (("jpg", b"jpeg"), ("txt", b"A bus.")):
                    info = tarfile.TarInfo(f"row-{number}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        data = out.getvalue()
    hub_server.commit("org/set", {name: gzip.compress(data) if name.endswith(".gz") else data})
    assert ids(bench.load(REPOSITORY)) == [f"row-{number}" for number in range(50)]
    asked = [each for each in hub_server.asked if "/resolve/" in each and each.endswith(name)]
    assert set(asked) == {f"GET /datasets/org/set/resolve/{HfApi().dataset_info('org/set').sha}/{name}"}
    assert len(asked) <= 3  # the look, the check of the first row, the import


def test_parquet_in_large_ranges(hub_server: Hub, bench: Any) -> None:
    """A file of 12 MB in row groups of 3 MB: a few requests, and hardly a byte more than the file has."""
    out = io.BytesIO()
    turns = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A bus."}]
    with pq.ParquetWriter(out, pa.Table.from_pylist([{"messages": turns, "image": b"x"}]).schema) as writer:
        for _ in range(4):
            rows = [{"messages": turns, "image": random.randbytes(64 << 10)} for _ in range(48)]
            writer.write_table(pa.Table.from_pylist(rows))
    data = out.getvalue()
    hub_server.commit("org/set", {"d.parquet": data})
    spec = f"{REPOSITORY}/d.parquet"
    config = ImportConfig(data=spec, out=str(bench.out), order="as-is")
    validate(config)
    hub_server.asked.clear()
    hub_server.sent = 0
    assert run(config).with_images == 4 * 48
    stored = [asked for asked in hub_server.asked if asked.startswith("GET /store/")]
    # Twice the footer and one row group (the check of the first row), and each column of each row group once.
    assert len(stored) < 40
    assert hub_server.sent < 1.4 * len(data)


def test_rows_of_a_sample_are_all_that_is_read(hub_server: Hub, bench: Any) -> None:
    """Row groups of which no row is taken aren't asked for."""
    out = io.BytesIO()
    turns = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A bus."}]
    with pq.ParquetWriter(out, pa.Table.from_pylist([{"messages": turns, "image": b"x"}]).schema) as writer:
        for _ in range(50):
            writer.write_table(pa.Table.from_pylist([{"messages": turns, "image": random.randbytes(64 << 10)}]))
    hub_server.commit("org/set", {"d.parquet": out.getvalue()})
    rows = bench.load(f"{REPOSITORY}/d.parquet", sample="20%")
    assert 1 <= len(rows) < 25
    assert hub_server.sent < (len(rows) + 3) * (80 << 10)


def test_private_and_gated(hub_server: Hub, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.commit("org/private", {"d.jsonl": lines(0)}, private=True)
    hub_server.commit("org/gated", {"d.jsonl": lines(1)}, gated=True)
    refused(
        bench, "hf://datasets/org/private", "no such dataset on the hub; check its name, a private one needs a token"
    )
    refused(bench, "hf://datasets/org/gated", "gated, .*give the token of an account that has access")
    monkeypatch.setenv("HF_TOKEN", hub_server.strangers_token)
    refused(bench, "hf://datasets/org/private", "no such dataset on the hub; .*or your token may not read it")
    refused(bench, "hf://datasets/org/gated", "gated, .*ask for access on its page")
    monkeypatch.setenv("HF_TOKEN", "hf_nonsense")
    refused(bench, "hf://datasets/org/private", "the hub refuses: .*[Ii]nvalid")
    monkeypatch.setenv("HF_TOKEN", hub_server.token)
    assert ids(bench.load("hf://datasets/org/private")) == ["row-0"]
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text(hub_server.token)  # as `hf auth login` leaves it
    assert ids(bench.load("hf://datasets/org/gated", overwrite=True)) == ["row-1"]


def refused(bench: Any, data: str, message: str, **options: Any) -> None:
    HfFileSystem.clear_instance_cache()
    config = ImportConfig(data=data, out=str(bench.out), **options)
    with pytest.raises(StageError, match=message) as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert not bench.out.exists()


def test_what_is_not_there(hub_server: Hub, bench: Any) -> None:
    hub_server.commit("org/set", FILES, tag="v1")
    refused(bench, "hf://datasets/org/none", "org/none: no such dataset on the hub")
    refused(bench, "hf://datasets/org/bad..name", r"bad\.\.name: not hf://datasets/ORG/NAME")
    refused(bench, f"{REPOSITORY}@v2", r"org/set: has no revision 'v2'; it has main, v1, and commits")
    refused(bench, f"{REPOSITORY}:none", r"has no config 'none'; it has ocr, vqa, chart")
    refused(bench, f"{REPOSITORY}:ocr:none", r":ocr: has no split 'none'; it has train, test")
    refused(bench, f"{REPOSITORY}/none.parquet", r"none\.parquet: no such file")
    refused(bench, f"{REPOSITORY}/none/*.parquet", "no file matches")
    hub_server.commit("org/splits", {"valid.jsonl": lines(0), "test.jsonl": lines(1)})
    refused(bench, "hf://datasets/org/splits", "has the splits validation, test; name one, several with commas")
    hub_server.commit("org/empty", {"README.md": "# Soon"})
    refused(bench, "hf://datasets/org/empty", r"none of its 1 files ends in \.json, ")
    hub_server.commit("org/csv", {"d.csv": "a,b"})
    refused(bench, "hf://datasets/org/csv", r"none of its 1 files ends in \.json, ")
    hub_server.commit("org/card", {"README.md": "---\nconfigs: [{config_name: [}]\n---\n", "d.jsonl": lines(0)})
    refused(bench, "hf://datasets/org/card", r"README\.md: what it says of its configs can't be read")
    card = "---\nconfigs:\n- config_name: a\n  data_files: gone.parquet\n---\n"
    hub_server.commit("org/gone", {"README.md": card, "d.parquet": parquet(0)})
    refused(bench, "hf://datasets/org/gone", r"names? gone\.parquet, which isn't there")
    hub_server.commit("org/mixed", {"a.jsonl": lines(0), "b.parquet": parquet(1)})
    refused(
        bench, "hf://datasets/org/mixed", r"files of several kinds \(1 jsonl, 1 parquet\); choose one with --format"
    )
    assert ids(bench.load("hf://datasets/org/mixed", format="parquet")) == ["row-1"]


def test_no_network(bench: Any, hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    refused(bench, REPOSITORY, f"the hub at {closed} can't be reached .*try again")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(bench, REPOSITORY, "HF_HUB_OFFLINE is set")


def test_a_file_that_goes_while_it_is_read(hub_server: Hub, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = hub_server.commit("org/set", {"d.jsonl": lines(0)})
    listing = find(parse(REPOSITORY), "auto")
    del hub_server.repositories["datasets", "org/set"].commits[sha]["d.jsonl"]
    from vig_ray.dataset.inputs import read_rows

    with pytest.raises(StageError, match=r"d\.jsonl: the hub refuses: .*[Ee]ntry [Nn]ot [Ff]ound"):
        list(read_rows(listing.files[0]))


def test_from_the_command_line_with_the_users_token(hub_server: Hub, tmp_path: Path) -> None:
    hub_server.commit("org/set", FILES, private=True)
    out = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "vig_ray.cli",
        "import",
        "--data",
        f"{REPOSITORY}:ocr",
        "--out",
        str(out),
        "--workers",
        "2",
    ]
    failed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"vig: {REPOSITORY}: no such dataset on the hub")
    assert failed.stderr.count("\n") == 1
    environment = {**os.environ, "HF_TOKEN": hub_server.token}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("read 3 = with images 0 + text-only 3 + failed 0\n")
    assert "split test: 1 files" in done.stderr
    assert ids(read_samples(out / "samples")) == ["row-0", "row-1", "row-2"]
