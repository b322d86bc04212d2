"""Fetching images by URL, from real servers that behave as those of the web do."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import vig_ray
from tests.web_server import PNG, WebServer, body, endless, in_seconds, reset, silent, status, web_server
from vig_ray.dataset import fetch, fetched, hosts
from vig_ray.dataset.fetch import Fetcher
from vig_ray.dataset.fetch_cache import FetchOptions
from vig_ray.dataset.fetched import Fetching, Outcome
from vig_ray.dataset.schema import Image, RowError, Sample, Turn

IMAGE = PNG + b"not a whole one, but by its first bytes"


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with web_server() as store:
        yield store


@pytest.fixture
def web(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    server.files, server.answers = {"/a.png": IMAGE}, {}
    server.asked.clear()
    server.headers.clear()
    monkeypatch.setattr(fetch, "_BACKOFF_S", 0.01)
    return server


def options(folder: Path, **given: Any) -> FetchOptions:
    return FetchOptions(**({"cache": str(folder / "cache"), "private": ("127.0.0.1",), "at_once": 8} | given))


def get(folder: Path, url: str, sha256: str | None = None, **given: Any) -> bytes:
    with Fetcher(options(folder, **given)) as fetcher:
        return Path(fetcher.ask(url, sha256).result()).read_bytes()


def refused(folder: Path, url: str, sha256: str | None = None, **given: Any) -> str:
    with pytest.raises(RowError) as caught:
        get(folder, url, sha256, **given)
    assert not [each for each in folder.rglob("*") if each.is_file()]
    return str(caught.value)


def test_an_image_is_fetched_once(web: WebServer, tmp_path: Path) -> None:
    assert get(tmp_path, f"{web.url}/a.png", checksum(IMAGE)) == IMAGE
    assert get(tmp_path, f"{web.url}/a.png", checksum(IMAGE)) == IMAGE
    assert get(tmp_path, f"{web.url}/other.png", checksum(IMAGE)) == IMAGE  # the same content at another place
    assert len(web.asked["/a.png"]) == 1
    assert [path.relative_to(tmp_path).parts for path in tmp_path.rglob("*") if path.is_file()] == [
        ("cache", "sha256", checksum(IMAGE)[:2], checksum(IMAGE))
    ]
    assert web.headers[0]["User-Agent"].startswith(f"vig-ray/{vig_ray.__version__} ")


def test_without_a_checksum_the_url_is_its_name(web: WebServer, tmp_path: Path) -> None:
    url = f"{web.url}/a.png"
    assert get(tmp_path, url) == get(tmp_path, url) == IMAGE
    assert len(web.asked["/a.png"]) == 1
    assert (tmp_path / "cache" / "url" / checksum(url.encode())[:2] / checksum(url.encode())).read_bytes() == IMAGE


def test_what_is_gone(web: WebServer, tmp_path: Path) -> None:
    web.answers = {
        "/410": [status(410)],
        "/403": [status(403)],
        "/html": [body(b"<!DOCTYPE html><title>Parked domain</title>")],
        "/empty": [body(b"")],
        "/short": [body(b"\x89P")],
        "/loop": [status(302, Location="/loop")],
        "/ftp": [status(302, Location="ftp://127.0.0.1/a.png")],
    }
    told = {path: refused(tmp_path, web.url + path) for path in ("/404", *web.answers)}
    url = web.url
    assert told["/404"] == f"HTTP404: '{url}/404': the server answers 404 Not Found"
    assert told["/410"] == f"HTTP410: '{url}/410': the server answers 410 Gone"
    assert told["/403"] == f"HTTP403: '{url}/403': the server answers 403 Forbidden"
    assert told["/html"] == f"NotAnImage: '{url}/html': begins b'<!DOCTYPE html><'"
    assert told["/empty"] == f"NotAnImage: '{url}/empty': 0 bytes"
    assert told["/short"] == f"NotAnImage: '{url}/short': begins b'\\x89P'"
    assert told["/loop"] == f"TooManyRedirects: '{url}/loop': more than 5, the last to '{url}/loop'"
    assert told["/ftp"] == "ImageUrl: 'ftp://127.0.0.1/a.png': not an http(s) URL"
    assert {path: len(times) for path, times in web.asked.items()} == {
        path: 6 if path == "/loop" else 1 for path in told
    }


def test_other_bytes_than_the_checksum_says(web: WebServer, tmp_path: Path) -> None:
    wanted = checksum(b"the image as it was")
    assert refused(tmp_path, f"{web.url}/a.png", wanted) == (
        f"Checksum: '{web.url}/a.png': its SHA-256 is {checksum(IMAGE)}, not {wanted}"
    )


def busy_for_two_seconds(request: Any) -> None:
    status(503, Retry_After=in_seconds(2))(request)  # by a date, which has no parts of a second


def test_a_busy_server_is_given_the_time_that_it_asks_for(web: WebServer, tmp_path: Path) -> None:
    web.files["/b.png"] = web.files["/c.png"] = IMAGE
    web.answers = {
        "/a.png": [status(429, Retry_After="1"), body(IMAGE)],
        "/b.png": [busy_for_two_seconds, body(IMAGE)],
        "/c.png": [status(429)] * 5 + [body(IMAGE)],
    }
    for path, times, seconds in (("/a.png", 2, 1.0), ("/b.png", 2, 0.9), ("/c.png", 6, 0.0)):
        assert get(tmp_path, web.url + path) == IMAGE
        asked = web.asked[path]
        assert len(asked) == times
        assert asked[1] - asked[0] >= seconds


def test_while_a_host_rests_nobody_asks_it(web: WebServer, tmp_path: Path) -> None:
    web.files |= {f"/{number}.png": IMAGE for number in range(8)}
    web.answers = {"/0.png": [status(429, Retry_After="1"), body(IMAGE)]}
    with Fetcher(options(tmp_path, at_once=1)) as fetcher:
        futures = [fetcher.ask(f"{web.url}/{number}.png", None) for number in range(8)]
        assert all(Path(future.result()).read_bytes() == IMAGE for future in futures)
    first = web.asked["/0.png"][0]
    later = [when for times in web.asked.values() for when in times if when > first]
    assert len(later) >= 8
    assert min(later) >= first + 1


def test_a_server_that_is_busy_for_long_is_given_up(web: WebServer, tmp_path: Path) -> None:
    web.answers = {"/a.png": [status(429, Retry_After="86400")], "/b.png": [status(503)]}
    assert refused(tmp_path, f"{web.url}/a.png").startswith("HTTP429: ")
    assert refused(tmp_path, f"{web.url}/b.png").startswith("HTTP503: ")
    assert (len(web.asked["/a.png"]), len(web.asked["/b.png"])) == (1, 6)


def test_faults_are_tried_again(web: WebServer, tmp_path: Path) -> None:
    good = body(IMAGE)
    web.answers = {
        "/reset": [reset, reset, good],
        "/500": [status(500), status(502), good],
        "/cut": [body(IMAGE[:20], length=len(IMAGE)), good],
        "/always": [reset],
        "/never": [body(IMAGE[:20], length=len(IMAGE))],
    }
    for path in ("/reset", "/500", "/cut"):
        assert get(tmp_path / path[1:], web.url + path) == IMAGE
    assert refused(tmp_path / "x", f"{web.url}/always").startswith(f"ConnectionFailed: '{web.url}/always': ")
    assert refused(tmp_path / "x", f"{web.url}/never").startswith(f"BadAnswer: '{web.url}/never': ")
    always = len(web.asked["/always"])  # aiohttp asks a second time by itself
    assert 3 <= always <= 6
    assert [len(web.asked[path]) for path in web.answers] == [3, 3, 2, always, 3]


def test_a_server_that_says_nothing(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    web.answers = {"/a.png": [silent]}
    assert refused(tmp_path, f"{web.url}/a.png") == f"Timeout: '{web.url}/a.png': no answer in time"


def test_a_host_that_never_answers_is_left_alone(tmp_path: Path, web: WebServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Fetcher(options(tmp_path, at_once=1)) as fetcher:
            errors = [str(fetcher.ask(f"{url}/{number}.png", None).exception()) for number in range(6)]
    assert [error.partition(":")[0] for error in errors] == ["ConnectionFailed"] * 2 + ["NoAnswer"] * 4
    assert errors[-1].endswith(f"127.0.0.1 is not asked: {hosts._SILENT_REQUESTS} requests in a row had no answer")


def test_large_and_endless_bodies(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_FETCHED_BYTES", 1 << 20)
    web.answers = {"/endless": [endless], "/large": [body(PNG, length=(1 << 20) + 1)]}
    for path in web.answers:
        assert refused(tmp_path, web.url + path) == (
            f"TooLarge: '{web.url}{path}': more than 1048576 bytes, which is the most allowed"
        )
    web.files["/most"] = PNG + bytes((1 << 20) - len(PNG))
    assert get(tmp_path, f"{web.url}/most", checksum(web.files["/most"])) == web.files["/most"]


def test_redirects_are_followed_and_checked(web: WebServer, tmp_path: Path) -> None:
    web.answers = {
        "/moved": [status(301, Location="../a.png")],
        "/broken": [status(302, Location="http://[bad")],
        "/inside": [status(302, Location="http://169.254.169.254/latest/meta-data")],
    }
    assert refused(tmp_path, f"{web.url}/inside") == (
        "PrivateAddress: 'http://169.254.169.254/latest/meta-data': 169.254.169.254 isn't on the public internet; for "
        "a store of your own: --fetch-private 169.254.169.254"
    )
    assert refused(tmp_path, f"{web.url}/broken") == "ImageUrl: 'http://[bad': not a URL that can be asked for"
    assert get(tmp_path, f"{web.url}/moved") == IMAGE


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.0.0.1", "[::ffff:127.0.0.1]"])
def test_a_network_s_own_addresses_are_not_asked(host: str, web: WebServer, tmp_path: Path) -> None:
    port = web.url.rpartition(":")[2]
    assert refused(tmp_path, f"http://{host}:{port}/a.png", private=()).startswith("PrivateAddress: ")
    assert not web.asked


@pytest.mark.parametrize("url", ["http://2130706433/", "http://127.1/", "http://0x7f.0.0.1/", "http://a\\@127.0.0.1/"])
def test_other_spellings_of_an_address(url: str, tmp_path: Path) -> None:
    assert refused(tmp_path, url, private=()).partition(":")[0] in ("PrivateAddress", "ImageUrl", "HostNotFound")


def test_a_listed_host_may_be_inside(web: WebServer, tmp_path: Path) -> None:
    port = web.url.rpartition(":")[2]
    assert get(tmp_path, f"http://LOCALHOST:{port}/a.png", private=("localhost",)) == IMAGE


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a",
        "http://[/a",
        "http://x:99999/",
        "http://a..b.example/x.jpg",
        f"http://{'a' * 64}.example/x.jpg",
    ],
)
def test_what_is_no_url(url: str, tmp_path: Path) -> None:
    assert refused(tmp_path, url).startswith("ImageUrl: ")


def test_a_host_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path, "http://no-such-host.invalid/a.png").partition(":")[0] == "HostNotFound"


def test_few_at_a_time(web: WebServer, tmp_path: Path) -> None:
    at_once: set[str] = set()
    most = 0

    def slowly(request: Any) -> None:
        nonlocal most
        with web.lock:
            at_once.add(request.path)
            most = max(most, len(at_once))
        time.sleep(0.02)
        with web.lock:
            at_once.remove(request.path)
        body(IMAGE)(request)

    web.answers = {f"/{number}": [slowly] for number in range(30)}
    with Fetcher(options(tmp_path, at_once=3)) as fetcher:
        for future in [fetcher.ask(web.url + path, None) for path in web.answers]:
            future.result()
    assert 1 < most <= 3


def test_one_image_is_asked_for_once_at_a_time(web: WebServer, tmp_path: Path) -> None:
    with Fetcher(options(tmp_path)) as fetcher:
        for path in ("/a.png", "/none.png"):
            futures = [fetcher.ask(web.url + path, None) for _ in range(20)]
            assert len({str(future.exception() or future.result()) for future in futures}) == 1
            _ = fetcher.ask(web.url + path, None).exception()
    assert {path: len(times) for path, times in web.asked.items()} == {"/a.png": 1, "/none.png": 1}


def test_giving_up_ends_what_is_on_its_way(web: WebServer, tmp_path: Path) -> None:
    web.answers = {"/a.png": [silent]}
    with Fetcher(options(tmp_path)) as fetcher:
        future = fetcher.ask(f"{web.url}/a.png", None)
        while not web.asked:
            time.sleep(0.01)
    assert future.cancelled()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def outcome(number: int, *images: Image) -> Outcome:
    sample = Sample(f"id-{number}", None, images, (Turn("user", "What?"), Turn("assistant", "A.")))
    return Outcome(f"d/{number}", sample.id, sample, {})


def test_rows_come_out_in_their_order(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "_ROWS", 10)
    gate = threading.Event()

    def held(request: Any) -> None:
        gate.wait()
        body(IMAGE)(request)

    web.answers = {"/3.png": [held]}
    web.files = {f"/{number}.png": IMAGE + bytes([number]) for number in range(50)}
    found: list[Outcome] = []
    with Fetching("always", options(tmp_path), found.append) as rows:
        for number in range(50):
            if number == 10:
                threading.Timer(0.2, gate.set).start()
            if number == 20:
                rows.add(Outcome("d/20", "id-20", RowError("Bad", "row"), {}))
            else:
                extra = (Image(bytes=b"x"), Image(uri="/local.png")) if number % 2 else ()
                rows.add(outcome(number, *extra, Image(uri=f"{web.url}/{number if number < 40 else 99}.png")))
            assert number + 1 - len(found) <= 10
            assert gate.is_set() or len(found) <= 3
    assert [each.key for each in found] == [f"d/{number}" for number in range(50)]
    for number, each in enumerate(found):
        if number == 20 or number >= 40:
            assert isinstance(each.sample, RowError)
            assert each.sample.kind == ("Bad" if number == 20 else "HTTP404")
            assert each.id == f"id-{number}"
        else:
            assert isinstance(each.sample, Sample)
            content = Path(str(each.sample.images[-1].uri)).read_bytes()
            assert content == (IMAGE if number == 3 else web.files[f"/{number}.png"])
            assert list(each.sample.images[:-1]) == ([Image(bytes=b"x"), Image("/local.png")] if number % 2 else [])


def test_which_are_fetched(web: WebServer, tmp_path: Path) -> None:
    url = f"{web.url}/a.png"
    rows = [outcome(0, Image(url)), outcome(1, Image(url, sha256=checksum(IMAGE))), outcome(2)]
    for which, kept in (("never", [True, True]), ("auto", [True, False]), ("always", [False, False])):
        found: list[Outcome] = []
        with Fetching(which, options(tmp_path), found.append) as fetching:  # type: ignore[arg-type]
            for row in rows:
                fetching.add(row)
        images = [each.sample.images for each in found]  # type: ignore[union-attr]
        assert [pictures[0].uri == url for pictures in images[:2]] == kept
        assert images[2] == ()


def test_imported_images_are_files_of_the_cache(bench: Any, make_row: Any, make_png: Any, web: WebServer) -> None:
    web.files = {f"/{number}.png": make_png([(number, 2, 3)]) for number in range(6)}
    rows = [make_row(number, image=f"{web.url}/{number}.png") for number in range(7)]
    data = bench.write("d.json", [*rows, "not a row"])
    found = bench.load(data, fetch="always", fetch_private=["127.0.0.1"])
    assert [row["id"] for row in found] == [*(f"row-{number}" for number in range(7)), None]
    for number, row in enumerate(found[:6]):
        (image,) = row["images"]
        assert image["uri"].startswith(f"{bench.out}/fetched/url/")
        assert Path(image["uri"]).read_bytes() == web.files[f"/{number}.png"]
    assert found[6]["error"] == f"HTTP404: '{web.url}/6.png': the server answers 404 Not Found"
    assert bench.report.failures == {"HTTP404": 1, "NotAnObject": 1}
    web.files["/6.png"] = make_png([(6, 2, 3)])
    again = bench.load(
        data, fetch="always", fetch_private=["127.0.0.1"], fetch_cache=str(bench.out / "fetched"), overwrite=True
    )
    assert [row["images"] for row in again[:6]] == [row["images"] for row in found[:6]]
    assert again[6]["error"] is None
    assert [len(web.asked[f"/{number}.png"]) for number in range(7)] == [1] * 6 + [2]
    assert bench.load(data, overwrite=True)[0]["images"][0]["uri"] == f"{web.url}/0.png"


def test_an_import_that_was_killed_keeps_what_it_fetched(
    bench: Any, make_row: Any, make_png: Any, web: WebServer
) -> None:
    import signal
    import subprocess
    import sys

    web.files = {f"/{number}.png": make_png([(number, 2, 3)]) for number in range(6)}
    web.answers = {"/5.png": [silent]}
    data = bench.write("d.json", [make_row(number, image=f"{web.url}/{number}.png") for number in range(6)])
    command = (
        "import sys; from vig_ray.dataset.importing import ImportConfig, run; "
        "run(ImportConfig(data=sys.argv[1], out=sys.argv[2], fetch='always', fetch_private=['127.0.0.1']))"
    )
    with subprocess.Popen([sys.executable, "-c", command, str(data), str(bench.out)]) as process:
        while len([each for each in bench.out.glob("fetched/url/*/*") if len(each.name) == 64]) < 5:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    web.answers = {}
    found = bench.load(data, fetch="always", fetch_private=["127.0.0.1"])
    assert [row["error"] for row in found] == [None] * 6
    assert [len(web.asked[f"/{number}.png"]) for number in range(6)] == [1] * 5 + [2]
