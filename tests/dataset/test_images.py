"""Decoding: expected pixels written by hand, and every kind of file that must be refused."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from sklearn.datasets import load_sample_images

from vig_ray.dataset import images
from vig_ray.dataset.images import MAX_PIXELS, ImageError, decode_image, load_image

# Three wide, two high, and no symmetry.
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WHITE, GREY, BLACK = (255, 255, 255), (90, 90, 90), (0, 0, 0)
PIXELS = np.array([[RED, GREEN, BLUE], [WHITE, GREY, BLACK]], dtype=np.uint8)


def saved(image: PIL.Image.Image, container: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, container, **options)
    return out.getvalue()


def rgb() -> PIL.Image.Image:
    return PIL.Image.fromarray(PIXELS)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, bits: int, colour: int, data: bytes, *more: bytes) -> bytes:
    """A PNG file made by hand: its header may say anything."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("container", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_rgb_in_every_lossless_container(container: str) -> None:
    found = decode_image(saved(rgb(), container, **({"lossless": True} if container == "WEBP" else {})))
    assert found.dtype == np.uint8
    assert found.shape == (2, 3, 3)
    np.testing.assert_array_equal(found, PIXELS)
    found[0, 0] = 1  # the caller's own, to change


def test_jpeg_within_its_loss() -> None:
    flat = PIL.Image.new("RGB", (40, 20), (200, 60, 30))
    found = decode_image(saved(flat, "JPEG", quality=95))
    assert found.shape == (20, 40, 3)
    assert np.abs(found.astype(int) - [200, 60, 30]).max() <= 3


def test_greyscale() -> None:
    grey = np.array([[0, 7, 255], [100, 3, 9]], dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(saved(PIL.Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=2))


def test_one_bit() -> None:
    bits = png_of(3, 2, 1, 0, b"\0\xa0\0\x40")  # 101, 010
    np.testing.assert_array_equal(decode_image(bits)[:, :, 1], [[255, 0, 255], [0, 255, 0]])


def test_palette_with_transparency_drops_it() -> None:
    palette = chunk(b"PLTE", bytes([*RED, *GREEN, *BLUE, *GREY])) + chunk(b"tRNS", bytes([0, 128, 255]))
    found = decode_image(png_of(2, 2, 8, 3, b"\0\x00\x01\0\x02\x03", palette))
    np.testing.assert_array_equal(found, [[RED, GREEN], [BLUE, GREY]])


def test_alpha_is_dropped_not_blended() -> None:
    rgba = np.dstack([PIXELS, np.array([[0, 10, 128], [255, 1, 0]], dtype=np.uint8)])
    np.testing.assert_array_equal(decode_image(saved(PIL.Image.fromarray(rgba), "PNG")), PIXELS)


def test_grey_with_alpha() -> None:
    found = decode_image(png_of(2, 2, 8, 4, b"\0\x05\x00\x80\xff\0\x01\x02\xff\x00"))
    np.testing.assert_array_equal(found, [[[5] * 3, [128] * 3], [[1] * 3, [255] * 3]])


def test_cmyk() -> None:
    cmyk = PIL.Image.new("CMYK", (4, 3), (255, 0, 0, 0))
    cmyk.putpixel((3, 2), (0, 0, 0, 255))
    cmyk.putpixel((0, 2), (0, 0, 255, 100))
    found = decode_image(saved(cmyk, "TIFF"))
    assert found[0, 0].tolist() == [0, 255, 255]
    assert found[2, 3].tolist() == [0, 0, 0]
    assert found[2, 0].tolist() == [155, 155, 0]
    flat = decode_image(saved(PIL.Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100))
    assert np.abs(flat.astype(int) - [0, 255, 255]).max() <= 3


WIDE = np.array([[0, 255, 256], [1000, 40000, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("size", [(1, 1), (57, 33), (640, 481)])
def test_pixels_are_those_that_pillow_converts(mode: str, size: tuple[int, int]) -> None:
    image = PIL.Image.effect_noise(size, 90).convert("RGB").rotate(20, fillcolor=RED).convert(mode)
    if mode == "RGBA":
        image.putalpha(PIL.Image.linear_gradient("L").resize(size))
    for number in (1, 6):
        exif = PIL.Image.Exif()
        exif[0x112] = number
        files = [saved(image, "TIFF", exif=exif)]
        files += [saved(image, "PNG", exif=exif)] if mode not in ("CMYK", "YCbCr") else []
        files += [saved(image, "JPEG", exif=exif)] if mode not in ("RGBA", "LA", "P") else []
        for data in files:
            with PIL.Image.open(io.BytesIO(data)) as file:
                expected = np.array(PIL.ImageOps.exif_transpose(file).convert("RGB"))
            found = decode_image(data)
            np.testing.assert_array_equal(found, expected)
            assert found.flags.writeable
            assert found.flags.c_contiguous


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_large_images_which_pillow_holds_in_pieces(mode: str) -> None:
    image = PIL.Image.effect_noise((3001, 4001), 90).convert(mode)  # 48 MB; its pieces have 16
    expected = np.repeat(np.asarray(image.convert("L"))[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(saved(image, "BMP")), expected)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs_are_as_pillow_decodes_them(subsampling: int, progressive: bool) -> None:
    for photograph in load_sample_images().images:
        data = saved(
            PIL.Image.fromarray(photograph), "JPEG", quality=90, subsampling=subsampling, progressive=progressive
        )
        with PIL.Image.open(io.BytesIO(data)) as file:
            np.testing.assert_array_equal(decode_image(data), np.array(file.convert("RGB")))


@pytest.mark.parametrize(
    "data",
    [
        png_of(3, 2, 16, 0, b"\0" + WIDE[0].astype(">u2").tobytes() + b"\0" + WIDE[1].astype(">u2").tobytes()),
        saved(PIL.Image.fromarray(WIDE), "TIFF"),
        b"P5 3 2 65535\n" + WIDE.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "pgm"],
)
def test_16_bit_greyscale_keeps_its_upper_bits(data: bytes) -> None:
    np.testing.assert_array_equal(decode_image(data), np.stack([[[0, 0, 1], [3, 156, 255]]] * 3, axis=2))


def test_16_bit_colour_keeps_its_upper_bits() -> None:
    row = np.array([[0, 256, 65535], [512, 1000, 40000]], dtype=">u2").tobytes()
    found = decode_image(png_of(2, 2, 16, 2, (b"\0" + row) * 2))
    np.testing.assert_array_equal(found, [[[0, 1, 255], [2, 3, 156]]] * 2)


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "mode F"), (np.int32, "mode I")])
def test_pixels_without_a_known_range_are_refused(dtype: Any, mode: str) -> None:
    with pytest.raises(ImageError, match=f"UnsupportedMode: .*{mode}"):
        decode_image(saved(PIL.Image.fromarray(np.ones((3, 3), dtype=dtype)), "TIFF"))


# What each orientation says is seen where the stored picture has its first row and column.
ORIENTATIONS = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: PIXELS[::-1].transpose(1, 0, 2),
    7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
    8: PIXELS[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("container", ["PNG", "WEBP"])
def test_exif_orientation(orientation: int, container: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = saved(rgb(), container, exif=exif, **({"lossless": True} if container == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(data), ORIENTATIONS[orientation])


def test_exif_orientation_of_a_jpeg_and_of_16_bit() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the left edge as stored is the top as seen
    picture = PIL.Image.new("RGB", (64, 32), WHITE)
    picture.paste(BLACK, (0, 0, 32, 32))
    found = decode_image(saved(picture, "JPEG", exif=exif))
    assert found.shape == (64, 32, 3)
    assert found[:30].max() < 30
    assert found[34:].min() > 225
    wide = decode_image(saved(PIL.Image.fromarray(WIDE), "PNG", exif=exif))
    np.testing.assert_array_equal(wide[:, :, 0], [[3, 0], [156, 0], [255, 1]])


@pytest.mark.filterwarnings("ignore:.*EXIF.*", "ignore:Truncated")
@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"])
def test_damaged_exif_does_not_cost_the_picture(exif: bytes) -> None:
    assert decode_image(saved(rgb(), "JPEG", exif=exif)).shape == (2, 3, 3)


@pytest.mark.parametrize("container", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation(container: str) -> None:
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if container == "WEBP" else {}
    data = saved(frames[0], container, save_all=True, append_images=frames[1:], duration=100, **options)
    np.testing.assert_array_equal(decode_image(data), np.full((4, 4, 3), RED))


@pytest.mark.parametrize("size", [(100_000, 100_000), (12_000, 12_000), (9_460, 9_459)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    bomb = png_of(*size, 8, 2, b"\0" * 100)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="TooLarge"):
            decode_image(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000  # nothing was decoded


@pytest.mark.filterwarnings("error")
def test_a_bomb_is_refused_where_warnings_are_errors() -> None:
    with pytest.raises(ImageError, match="TooLarge"):
        decode_image(png_of(12_000, 12_000, 8, 2, b""))


def test_the_limit_is_the_callers() -> None:
    assert MAX_PIXELS == 89_478_485
    assert decode_image(saved(rgb(), "PNG"), max_pixels=6).shape == (2, 3, 3)
    with pytest.raises(ImageError, match="TooLarge: too large: 3x2 pixels, and 5 are allowed"):
        decode_image(saved(rgb(), "PNG"), max_pixels=5)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_a_picture_of_one_pixel_is_read(size: tuple[int, int]) -> None:
    """LLaVA trains on it; what can't take it says so."""
    assert decode_image(saved(PIL.Image.new("RGB", size), "PNG")).shape == (size[1], size[0], 3)


def noise() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("container", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_cut_file_is_refused(container: str, share: float) -> None:
    whole = saved(noise(), container)
    decode_image(whole)
    with pytest.raises(ImageError):
        decode_image(whole[: int(len(whole) * share)])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "EmptyFile"),
        (b"<!DOCTYPE html><html>not found</html>", "UnidentifiedImageError"),
        (b"\xff\xd8\xff", "UnidentifiedImageError"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "UnidentifiedImageError"),
        (b"\0" * 1000, "UnidentifiedImageError"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=f"^{kind}: ") as caught:
        decode_image(data)
    assert "0x" not in str(caught.value)  # no address of an object: the same failure has the same text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("container", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_anywhere_raises_nothing_but_image_errors(container: str) -> None:
    random = np.random.default_rng(1)
    whole = saved(noise(), container)
    for _ in range(40):
        data = bytearray(whole)
        for at in random.integers(0, min(len(data), 400), 6):
            data[at] = random.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert decode_image(bytes(data), max_pixels=10_000_000).shape[2] == 3


def test_loading_from_a_path_and_from_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a b%20#.png"
    path.write_bytes(saved(rgb(), "PNG"))
    for image in (
        {"uri": str(path), "bytes": None},
        {"uri": f"file://{tmp_path}/a%20b%2520%23.png"},
        {"uri": None, "bytes": path.read_bytes()},
    ):
        np.testing.assert_array_equal(load_image(image), PIXELS)


def test_loading_over_http(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(saved(rgb(), "PNG"))
    (tmp_path / "page.png").write_text("<html>")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        np.testing.assert_array_equal(load_image({"uri": f"{address}/a%20b.png"}), PIXELS)
        for name, message in {"none.png": "^FileNotFoundError: ", "page.png": "^UnidentifiedImageError: "}.items():
            with pytest.raises(ImageError, match=message):
                load_image({"uri": f"{address}/{name}"})
        server.shutdown()


class Pouring(BaseHTTPRequestHandler):
    """Sends 64 MB, with the length told before (/told) or not, and counts what was taken."""

    taken = 0

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/told":
            self.send_header("Content-Length", str(64 << 20))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(64):
                self.wfile.write(b"\x89PNG" * (1 << 18))
                Pouring.taken += 1 << 20

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.mark.parametrize("path", ["told", "untold"])
def test_a_remote_image_is_not_read_beyond_the_limit(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(Pouring, "taken", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Pouring) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ImageError, match=rf"^TooLarge: http://.*/{path}: more than 1000 bytes"):
            load_image({"uri": f"http://127.0.0.1:{server.server_port}/{path}"})
        server.shutdown()
    assert Pouring.taken < 32 << 20  # the sockets hold some


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "long.jpg").write_bytes(b"x" * 2000)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    for uri, message in {
        f"{tmp_path}/none.jpg": r"^FileNotFoundError: No such file or directory \(.*/none\.jpg\)$",
        f"{tmp_path}/text.jpg/1.jpg": "^NotADirectoryError: ",
        f"{tmp_path}/folder.jpg": "^NotAFile: ",
        f"{tmp_path}/pipe.jpg": "^NotAFile: ",
        f"{tmp_path}/empty.jpg": "^EmptyFile: ",
        f"{tmp_path}/text.jpg": "^UnidentifiedImageError: .*hello",
        f"{tmp_path}/long.jpg": "^TooLarge: .*2000 bytes",
        f"{tmp_path}/" + "x" * 300: "^OSError: File name too long",
        f"{tmp_path}/a\0b.jpg": "^ValueError: ",
        "nothing://x/1.jpg": "^ValueError: .*nothing",
        "http://127.0.0.1:9/1.jpg": "^[A-Za-z]+: ",
        "": "^NotAFile: ",
    }.items():
        with pytest.raises(ImageError, match=message) as caught:
            load_image({"uri": uri, "bytes": None})
        assert len(str(caught.value)) <= 300


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch(mode=0)
    with pytest.raises(ImageError, match=r"^PermissionError: "):
        load_image({"uri": str(tmp_path / "1.jpg")})


@pytest.mark.parametrize("image", [{}, {"uri": None, "bytes": None}, {"uri": "a", "bytes": b"b"}, {"uri": b"a"}])
def test_an_image_has_a_uri_or_bytes(image: Any) -> None:
    with pytest.raises(ImageError):
        load_image(image)


def test_many_threads_at_once() -> None:
    files = [saved(PIL.Image.new("RGB", (64, 64), (shade, 0, 255 - shade)), "PNG") for shade in range(0, 250, 5)]
    with ThreadPoolExecutor(16) as pool:
        for shade, found in zip(range(0, 250, 5), pool.map(decode_image, files), strict=True):
            assert (found == [shade, 0, 255 - shade]).all()
