"""Images, from where they lie or from their bytes, as RGB pixels, within limits.

What can go wrong with one image of millions (missing, cut off, a text called .jpg, a bomb) raises ImageError, with
a text short enough for a table. Everything here may be called from many threads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
from numpy.typing import NDArray

from vig_ray.dataset.archived import DamagedArchiveError, TooLargeError, archived, read_archived
from vig_ray.errors import StageError
from vig_ray.storage import filesystem, one_line, scheme_of

MAX_PIXELS = 89_478_485
"""The most pixels an image may have: Pillow's own default. Above twice this number Pillow refuses by itself."""
MAX_FILE_BYTES = 512 << 20
"""The largest file that is read."""

# Pillow's registry of formats is filled now, not at the first decode, of which there may be many at once.
PIL.Image.init()
# Those that datasets use; readers of others run programs (EPS) or have no need here. MPO, of phones, opens as JPEG.
_USED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_FORMATS = tuple(name for name in _USED if name in PIL.Image.OPEN)
_AS_PNG = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_AS_TIFF = frozenset({"F", "I"})  # their range isn't known, which the image's reader says
_MAX_MESSAGE = 300
_PIECE_BYTES = 1 << 20


class ImageError(Exception):
    """Why one image can't be used: "Class: cause"."""

    def __init__(self, kind: str, cause: str) -> None:
        text = f"{kind}: {cause}"
        super().__init__(text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "...")


def load_image(image: Mapping[str, str | bytes | None], *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels, uint8 RGB of shape [H, W, 3], of an image of the samples table: `uri` or `bytes`, one of them set.

    Raises ImageError.
    """
    return decode_image(image_bytes(image), max_pixels=max_pixels)


def image_bytes(image: Mapping[str, str | bytes | None]) -> bytes:
    """The file of an image of the samples table, as it is. Raises ImageError."""
    uri, data = image.get("uri"), image.get("bytes")
    if (uri is None) == (data is None):
        raise ImageError("ValueError", "an image must have either a uri or bytes")
    if isinstance(uri, str):
        data = _read(uri)
    if not isinstance(data, bytes):
        raise ImageError("TypeError", "an image's uri must be a string, its bytes bytes")
    return data


def is_image_file(head: bytes) -> bool:
    """Whether a file that begins so is of a format that is read here; 16 bytes tell, or all of a shorter file's."""
    return any(accept is None or accept(head[:16]) is True for accept in (PIL.Image.OPEN[name][1] for name in _FORMATS))


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels, uint8 RGB of shape [H, W, 3], of an image file's bytes: the first frame, as EXIF says it is held.

    Colours are what Pillow's `convert("RGB")` makes of them, as LLaVA loads its images: alpha is dropped, not
    blended. 16-bit greyscale keeps its upper 8 bits, where that conversion would clip. The size is checked before
    any pixel is decoded. Raises ImageError.
    """
    with _opened(data) as file:
        _check_size(*file.size, max_pixels)
        file.load()
        PIL.ImageOps.exif_transpose(file, in_place=True)
        return _rgb(file, file.format)


def pixels_of(image: PIL.Image.Image) -> NDArray[np.uint8]:
    """The pixels, uint8 RGB of shape [H, W, 3], of an image that somebody else has opened and turned upright: in the
    colours of `decode_image`. Raises ImageError."""
    return _rgb(image, image.format)


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height, pixels, that an image file's header names: no pixel is decoded. Raises ImageError."""
    with _opened(data) as file:
        _check_size(*file.size, max_pixels)
        return file.size


def image_file(image: PIL.Image.Image) -> bytes:
    """An image file with exactly these pixels; what EXIF says of its file doesn't turn it."""
    file = BytesIO()
    if image.mode in _AS_TIFF:
        image.save(file, "TIFF")
    else:
        (image if image.mode in _AS_PNG else image.convert("RGB")).save(file, "PNG", compress_level=1)
    return file.getvalue()


@contextmanager
def _opened(data: bytes) -> Iterator[PIL.Image.Image]:
    """The image file in `data`, open. Raises ImageError for whatever goes wrong with it inside the `with` block."""
    if not data:
        raise ImageError("EmptyFile", "0 bytes")
    try:
        with PIL.Image.open(BytesIO(data), formats=_FORMATS) as file:
            yield file
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError("UnidentifiedImageError", f"not an image that is read here; begins {data[:16]!r}") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ImageError("TooLarge", one_line(error)) from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
        raise ImageError(type(error).__name__, one_line(error)) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError("TooLarge", f"too large: {width}x{height} pixels, and {max_pixels} are allowed")


def _rgb(image: PIL.Image.Image, container: str | None) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ImageError("UnsupportedMode", "floating-point pixels (mode F) have no known range; convert it to 8 bit")
    if image.mode.startswith("I;16") or (image.mode == "I" and container in ("PNG", "PPM")):
        # Pillow opens 16-bit files in several modes; these containers have nothing wider than 16 bit.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "I":
        raise ImageError("UnsupportedMode", "32-bit pixels (mode I) have no known range; convert it to 8 bit")
    colours = np.empty((image.height, image.width, 3), dtype=np.uint8)
    # Of RGBA, convert() would keep the colours as they are.
    _copy_colours(image if image.mode in ("RGB", "RGBA") else image.convert("RGB"), colours)
    return colours


def _copy_colours(image: PIL.Image.Image, into: NDArray[np.uint8]) -> None:
    """Copy an RGB or RGBA image, four bytes a pixel in Pillow's memory, into uint8 [H, W, 3].

    `np.array(image)` copies three times, at up to several times what decoding a JPEG costs.
    """
    try:
        held = pa.array(image)
    except ValueError:  # Pillow holds the rows of large images in several pieces
        width, height = image.size
        half = height // 2
        _copy_colours(image.crop((0, 0, width, half)), into[:half])
        _copy_colours(image.crop((0, half, width, height)), into[half:])
    else:
        four = held.flatten().to_numpy(zero_copy_only=True).reshape(image.height, image.width, 4)
        cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=into)


def _read(uri: str) -> bytes:
    """The bytes at a path or URI. Raises ImageError."""
    try:
        if (inside := archived(uri)) is not None:
            return read_archived(inside, MAX_FILE_BYTES)
        scheme = scheme_of(uri)
        if scheme in ("", "file"):
            return _read_local(filesystem(uri)[1])
        return _read_web(uri) if scheme in ("http", "https") else _read_store(uri)
    except ImageError:
        raise
    except TooLargeError as error:
        raise ImageError("TooLarge", f"{uri}: {error}") from error
    except DamagedArchiveError as error:
        raise ImageError("DamagedArchive", f"{uri}: {error}") from error
    except StageError as error:
        raise _unreadable(error.__cause__ or error, uri) from error
    except Exception as error:  # fsspec passes on what its many clients raise
        raise _unreadable(error, uri) from error


def _unreadable(error: BaseException, uri: str) -> ImageError:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return ImageError(type(error).__name__, f"{cause} ({uri})" if uri not in cause else cause)


def _read_local(path: str) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe that nobody writes to would never return
        raise ImageError("NotAFile", f"{path}: not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError("TooLarge", f"{path}: {status.st_size} bytes, and {MAX_FILE_BYTES} are allowed")
    with open(path, "rb") as file:
        return file.read()


def _read_store(uri: str) -> bytes:
    """The bytes of an object in a store. Its size is asked for first; raises ImageError where it is over the limit."""
    fs, path = filesystem(uri)
    with fs.open_input_file(path) as file:
        size = file.size()
        if size > MAX_FILE_BYTES:
            raise ImageError("TooLarge", f"{uri}: {size} bytes, and {MAX_FILE_BYTES} are allowed")
        content: bytes = file.read()
    return content


def _read_web(uri: str) -> bytes:
    """The body of a web page, as one stream: a server need neither tell its length nor send ranges of it.

    Raises ImageError as soon as there is more than the limit; the connection is closed then.
    """
    import fsspec

    fs, path = fsspec.core.url_to_fs(uri)
    content = bytearray()
    with fs.open(path, "rb", block_size=0) as stream:  # 0: a stream; otherwise fsspec asks for ranges
        while piece := stream.read(_PIECE_BYTES):
            content += piece
            if len(content) > MAX_FILE_BYTES:
                raise ImageError("TooLarge", f"{uri}: more than {MAX_FILE_BYTES} bytes, which is the most allowed")
    return bytes(content)
