"""Images over HTTP from this process, some of them held back: where a job that reads them waits at a known sample."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.end_to_end.server import wait_until
from tests.selection.made import copy_outputs


class ImageStore:
    """Serves files by name. A held one is answered only when it is let go, to all who have asked by then."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.files: dict[str, bytes] = {}
        self._held: dict[str, threading.Event] = {}
        self._asked: Counter[str] = Counter()

    def hold(self, name: str) -> str:
        """Hold a file back; its URL."""
        self._held[name] = threading.Event()
        return f"{self.url}/{name}"

    def let_go(self, name: str) -> None:
        """Answer those who have asked for `name`, and all who come."""
        self._held[name].set()

    def asked(self, name: str) -> int:
        """How many times a held file's content was asked for."""
        return self._asked[name]

    def wait_for(self, name: str, times: int = 1) -> None:
        """Until a held file was asked for so many times."""
        wait_until(lambda: self._asked[name] >= times)

    def get(self, name: str) -> bytes | None:
        """A file's content, once it may be had."""
        if name in self._held:
            self._asked[name] += 1
            self._held[name].wait()
        return self.files.get(name)


@contextmanager
def image_store() -> Iterator[ImageStore]:
    """A store for as long as the context lasts; at its end it lets everything go."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(store.files.get(self.path[1:]), whole=False)

        def do_GET(self) -> None:
            self._answer(store.get(self.path[1:]), whole=True)

        def _answer(self, file: bytes | None, *, whole: bool) -> None:
            try:
                self.send_response(404 if file is None else 200)
                self.send_header("Content-Length", str(len(file or b"")))
                self.end_headers()
                if whole and file is not None:
                    self.wfile.write(file)
            except OSError:  # who asked was killed meanwhile
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store = ImageStore(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        for name in list(store._held):
            store.let_go(name)
        server.shutdown()
        server.server_close()


def hold_images(source: Path, folder: Path, store: ImageStore, places: Mapping[str, Sequence[str]]) -> Path:
    """A copy of `source`/samples under `folder`, which is returned, with some images in the store and held there.

    `places`: the name of each such image, and the keys of samples of which the first with an image gets it.
    """
    copy_outputs(source, folder, "samples")
    (path,) = (folder / "samples").glob("*.parquet")
    table = pq.read_table(path)
    rows = {row["sample_key"]: row for row in table.to_pylist()}
    for name, keys in places.items():
        image = next(rows[key]["images"][0] for key in keys if rows[key]["images"])
        store.files[name] = Path(image["uri"].removeprefix("file://")).read_bytes()
        image["uri"] = store.hold(name)
    pq.write_table(pa.Table.from_pylist(list(rows.values()), schema=table.schema), path)
    return folder
