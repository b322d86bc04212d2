"""Data, images and samples in an object store that speaks S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.dataset.bucket import bucket_at
from vig_ray import storage
from vig_ray.dataset import images
from vig_ray.dataset.images import ImageError, load_image
from vig_ray.dataset.importing import ImportConfig, run, samples_directory, validate
from vig_ray.errors import StageError

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with bucket_at(endpoint, "bucket", monkeypatch) as found:
        yield found


def test_an_image_in_a_bucket_is_not_read_beyond_the_limit(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put_object(Key="long.png", Body=b"x" * 2000)
    bucket.put_object(Key="text.png", Body=b"x" * 1000)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ImageError, match=r"^TooLarge: s3://bucket/long.png: 2000 bytes, and 1000 are allowed$"):
        load_image({"uri": "s3://bucket/long.png"})
    with pytest.raises(ImageError, match=r"^UnidentifiedImageError: "):
        load_image({"uri": "s3://bucket/text.png"})


def test_data_images_and_samples_in_a_bucket(bucket: Any, make_row: Any, make_png: Any) -> None:
    pixels = [(1, 2, 3), (4, 5, 6)], [(7, 8, 9), (10, 11, 12)]
    bucket.put_object(Key="sets/images/coco/a b%.png", Body=make_png(*pixels))
    rows = [make_row(0, image="coco/a b%.png"), make_row(1, image="coco/none.png")]
    bucket.put_object(Key="sets/d.json", Body=json.dumps(rows).encode())
    config = ImportConfig(data="s3://bucket/sets/d.json", images="s3://bucket/sets/images", out="s3://bucket/out")
    validate(config)
    report = run(config)
    assert (report.directory, report.imported, report.failed) == ("s3://bucket/out/samples", 2, 0)
    assert samples_directory("s3://bucket/out") is not None
    assert run(config) == report

    fs, path = storage.filesystem("s3://bucket/out/samples")
    found = pq.read_table(path, filesystem=fs).to_pylist()
    assert [row["sample_key"] for row in found] == ["d/0000000000", "d/0000000001"]
    assert found[0]["images"] == [{"uri": "s3://bucket/sets/images/coco/a b%.png", "bytes": None}]
    np.testing.assert_array_equal(load_image(found[0]["images"][0]), np.array(pixels))
    with pytest.raises(ImageError, match="FileNotFoundError: "):
        load_image(found[1]["images"][0])
    with pytest.raises(ImageError, match=r"^[A-Za-z]+: .*") as caught:
        load_image({"uri": "s3://no-such-bucket/1.jpg", "bytes": None})
    assert len(str(caught.value)) <= 300


def test_a_folder_of_shards_in_a_bucket(bucket: Any, make_tar: Any, bench: Any) -> None:
    for name in ("s-0.tar", "s-1.tar"):
        path = make_tar(bench.folder / name, [("1.jpg", name.encode()), ("1.txt", b"A bus.")])
        bucket.put_object(Key=f"wds/{name}", Body=path.read_bytes())
    for data in ("s3://bucket/wds", "s3://bucket/wds/s-{0..1}.tar"):
        rows = bench.load(data, name="n", overwrite=True)
        assert [(row["sample_key"], row["images"][0]["bytes"]) for row in rows] == [
            ("n/s-0/0000000000", b"s-0.tar"),
            ("n/s-1/0000000000", b"s-1.tar"),
        ]


def test_overwriting_in_a_bucket_leaves_no_old_part(bucket: Any, make_row: Any) -> None:
    bucket.put_object(Key="d.json", Body=json.dumps([make_row(number) for number in range(3)]).encode())
    run(ImportConfig(data="s3://bucket/d.json", out="s3://bucket/out", rows_per_file=1))
    run(ImportConfig(data="s3://bucket/d.json", out="s3://bucket/out", overwrite=True))
    names = sorted(found.key for found in bucket.objects.filter(Prefix="out/") if found.size)
    assert len(names) == 2
    assert names[0] == "out/samples.stage.json"
    assert names[1].startswith("out/samples/")


@pytest.mark.parametrize("data", ["s3://bucket/none.json", "s3://no-such-bucket/d.json"])
def test_what_is_missing_is_named(data: str, bucket: Any) -> None:
    with pytest.raises(StageError, match=f"{data}: (no such file|can't be reached)"):
        validate(ImportConfig(data=data, out="s3://bucket/out"))
