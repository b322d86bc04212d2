"""Archives in an object store: what is asked of it, request by request."""

from __future__ import annotations

import io
import json
import random
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.dataset.bucket import bucket_at
from tests.dataset.conftest import png
from vig_ray.dataset import zip_directory
from vig_ray.dataset.images import image_bytes
from vig_ray.dataset.importing import ImportConfig, run
from vig_ray.dataset.members import members

boto3 = pytest.importorskip("boto3")
werkzeug_app = pytest.importorskip("moto.moto_server.werkzeug_app")


class Asked(NamedTuple):
    method: str
    path: str
    range: str
    sent: list[int]  # bytes, one entry

    @property
    def size(self) -> int:
        return self.sent[0]


class Counted:
    """A web application that counts what it sends to whom."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app, self.asked = app, list[Asked]()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        asked = Asked(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", ""), [0])
        self.asked.append(asked)
        for piece in self._app(environ, start_response):
            asked.sent[0] += len(piece)
            yield piece

    def of(self, name: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path.endswith(name)]


@pytest.fixture(scope="module")
def counted() -> Iterator[tuple[str, Counted]]:
    from werkzeug.serving import make_server

    app = Counted(werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)  # type: ignore[arg-type]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", app
    server.shutdown()


@pytest.fixture
def store(counted: tuple[str, Counted], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Counted]]:
    endpoint, app = counted
    with bucket_at(endpoint, "pictures", monkeypatch) as bucket:
        yield bucket, app


def zip_of(count: int) -> tuple[bytes, dict[str, bytes]]:
    """A zip of pictures of 5 KB that can't be compressed, stored and deflated in turns."""
    out, files = io.BytesIO(), {}
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(count):
            files[f"i/{number}.png"] = png([(1, 2, 3)]) + random.Random(number).randbytes(5000)
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.writestr(f"i/{number}.png", files[f"i/{number}.png"], method)
    return out.getvalue(), files


def test_of_a_zip_its_directory_is_read_and_then_the_images(
    store: tuple[Any, Counted], make_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, app = store
    data, files = zip_of(200)
    bucket.put_object(Key="sets/i.zip", Body=data)
    rows = [make_row(number, image=name) for number, name in enumerate(files)]
    bucket.put_object(Key="sets/d.json", Body=json.dumps(rows).encode())
    app.asked.clear()
    report = run(
        ImportConfig(data="s3://pictures/sets/d.json", images="s3://pictures/sets/i.zip", out="s3://pictures/out")
    )
    assert (report.imported, report.failed) == (200, 0)
    gets = [asked for asked in app.of("/i.zip") if asked.method == "GET" and asked.size]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        directory = len(data) - archive.start_dir
    assert sum(asked.size for asked in gets) < directory + (1 << 16) + 200
    assert len(gets) == 2

    samples = [row for path in bucket_parquet(bucket) for row in path]
    app.asked.clear()
    for row, content in zip(samples, files.values(), strict=True):
        assert image_bytes(row["images"][0]) == content
    gets = [asked for asked in app.of("/i.zip") if asked.method == "GET"]
    assert len(gets) == 200
    assert len(app.of("/i.zip")) <= 201  # its size is asked for once
    assert sum(asked.size for asked in gets) < sum(map(len, files.values())) + 200 * 200


def bucket_parquet(bucket: Any) -> Iterator[list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    for found in sorted(bucket.objects.filter(Prefix="out/samples/"), key=lambda each: str(each.key)):
        if found.key.endswith(".parquet"):
            yield pq.read_table(io.BytesIO(found.get()["Body"].read())).to_pylist()


def test_a_long_directory_is_read_in_pieces(store: tuple[Any, Counted], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, app = store
    monkeypatch.setattr(zip_directory, "_PIECE_BYTES", 1000)
    data, _ = zip_of(100)
    bucket.put_object(Key="i.zip", Body=data)
    app.asked.clear()
    found = list(members("s3://pictures/i.zip", "zip", len(data)))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert [(each.name, each.offset, each.size) for each in found] == [
            (info.filename, info.header_offset, info.compress_size) for info in archive.infolist()
        ]
        pieces = -(-(len(data) - archive.start_dir - 22) // 1000)
    assert len([asked for asked in app.of("/i.zip") if asked.method == "GET"]) == pieces + 1


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_is_read_once_and_then_its_images(kind: str, store: tuple[Any, Counted], make_row: Any) -> None:
    bucket, app = store
    files = {f"{number}.png": png([(number, 2, 3)]) + random.Random(number).randbytes(3000) for number in range(50)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w" if kind == "tar" else "w:gz") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    bucket.put_object(Key=f"sets/shard_0.{kind}", Body=out.getvalue())
    rows = [make_row(number, image=name) for number, name in enumerate(files)]
    bucket.put_object(Key="sets/d.json", Body=json.dumps(rows).encode())
    app.asked.clear()
    images = f"s3://pictures/sets/shard_*.{kind}"
    run(ImportConfig(data="s3://pictures/sets/d.json", images=images, out="s3://pictures/out"))
    sent = sum(asked.size for asked in app.of(f"/shard_0.{kind}") if asked.method == "GET")
    assert sent <= len(out.getvalue())
    unpacked = [each.key for each in bucket.objects.filter(Prefix="out/unpacked/") if each.size]
    assert len(unpacked) == (kind != "tar")
    for row, content in zip([row for rows in bucket_parquet(bucket) for row in rows], files.values(), strict=True):
        assert image_bytes(row["images"][0]) == content
    left = [each.key for each in bucket.objects.filter(Prefix="out/") if "/.import" in each.key and each.size]
    assert left == []


def test_images_by_url_are_kept_in_a_bucket(store: tuple[Any, Counted], make_row: Any, bench: Any) -> None:
    from tests.web_server import web_server

    bucket, _ = store
    with web_server() as web:
        web.files = {f"/{number}.png": png([(number, 2, 3)]) for number in range(5)}
        data = bench.write("d.json", [make_row(number, image=f"{web.url}/{number}.png") for number in range(5)])
        config = ImportConfig(data=str(data), out="s3://pictures/out", fetch="always", fetch_private=("127.0.0.1",))
        for again in (False, True):
            report = run(config.model_copy(update={"overwrite": again, "rows_per_file": 1 + again}))
            assert (report.imported, report.failed) == (5, 0)
            for number, row in enumerate(row for rows in bucket_parquet(bucket) for row in rows):
                assert row["images"][0]["uri"].startswith("s3://pictures/out/fetched/url/")
                assert image_bytes(row["images"][0]) == web.files[f"/{number}.png"]
        assert [len(times) for times in web.asked.values()] == [1] * 5
