"""From a request to the pair of prompts that the batch job makes of the same sample."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import PIL.Image

from serve_app.errors import RequestError
from serve_app.fetch import Allowance, check_url, fetch
from serve_app.options import AppConfig
from serve_app.schema import ScoreRequest
from vig_ray.dataset.images import ImageError, decode_image
from vig_ray.dataset.layouts import conversations
from vig_ray.dataset.marks import put_marks
from vig_ray.dataset.rows import check
from vig_ray.dataset.schema import IMAGE_MARK, Image, RowError, Sample
from vig_ray.model.prompt import Formatter, Pixels, Prompt, PromptError, PromptImage
from vig_ray.scoring.blur import blur_by, blur_kernel
from vig_ray.scoring.prepare import Pass, prepare

_THUMBNAIL_SIDE = 512


@dataclass(frozen=True)
class PreparedSample:
    """A sample ready for an engine. `reference_images`: JPEG data URIs, where they were asked for."""

    pair: tuple[Prompt, Prompt]
    sample: Sample
    kernels: list[int]
    reference_images: list[str] | None

    @property
    def tokens(self) -> int:
        """Tokens of both passes."""
        return sum(prompt.length for prompt in self.pair)


def parse_sample(request: ScoreRequest, image: bytes | None = None) -> Sample:
    """The sample in a request; `image`: an uploaded file in place of the request's own. Raises RequestError."""
    if request.messages is None:
        only_image = image if image is not None else _image_bytes(request.image or "", "image")
        row: dict[str, Any] = {
            "messages": [
                {"role": "user", "content": f"{IMAGE_MARK}\n{request.question}"},
                {"role": "assistant", "content": request.answer},
            ],
            "images": [only_image],
        }
    else:
        row = {"messages": [_message(message.model_dump(exclude_none=True)) for message in request.messages]}
        listed = [_image_bytes(text, f"images.{index}") for index, text in enumerate(request.images or ())]
        row["images"] = [*listed, image] if image is not None else listed
    row["images"] = [{"bytes": source} if isinstance(source, bytes) else {"url": source} for source in row["images"]]
    try:
        sample, _ = put_marks(conversations.parse(row))
        check(sample)
    except RowError as error:
        raise RequestError(422, error.kind, str(error).partition(": ")[2]) from error
    if not sample.images and not request.text_only:
        raise RequestError(422, "NoImage", "the sample has no image, so there is nothing to measure")
    return sample


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    return message | {"content": [_part(part) for part in message["content"]]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    text = part.get("image_url") or part.get("image")
    text = text["url"] if isinstance(text, dict) else text
    if part["type"] == "text" or text is None:
        return part
    source = _image_bytes(text, "an image part")
    return {"type": "image", "bytes": source} if isinstance(source, bytes) else {"type": "image", "url": source}


def _image_bytes(text: str, where: str) -> bytes | str:
    """The bytes in base64 or a data URI, or the http(s) URL as it is. Raises RequestError."""
    if text[:8].lower().startswith(("http://", "https://")):
        return text
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RequestError(422, "BadImage", f"{where}: a data URI must be base64, as in data:image/png;base64,...")
    try:
        image = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, "BadImage", f"{where}: not base64, a data URI or an http(s) URL") from error
    if not image:
        raise RequestError(422, "BadImage", f"{where}: an image of 0 bytes")
    return image


def check_hosts(sample: Sample, hosts: Sequence[str]) -> None:
    """Raise RequestError where an image lies elsewhere than on a listed host."""
    for image in sample.images:
        if image.uri is not None:
            check_url(image.uri, hosts)


async def fetch_images(sample: Sample, hosts: Sequence[str], allowance: Allowance) -> Sample:
    """The sample with the images that it names by URL, as far as the request's allowance goes. Raises RequestError."""
    images = []
    for image in sample.images:
        images.append(image if image.uri is None else Image(bytes=await fetch(image.uri, hosts, allowance)))
    return sample._replace(images=tuple(images))


def prepare_sample(
    sample: Sample,
    formatter: Formatter,
    passes: Sequence[Pass],
    config: AppConfig,
    *,
    reference: str = "blur",
    reference_images: bool = False,
    text_only: bool = False,
) -> PreparedSample | Prompt:
    """Decode, blur and tokenise; `passes`: the clean one and that of `reference`. Raises RequestError.

    `text_only`: for a sample without an image to leave out, return its prompt.
    """
    images = [_image(image, formatter, config.max_image_pixels) for image in sample.images]
    try:
        widths = [image.pixels.shape[1] for image in images]
        blurred = reference == "blur"
        reference_uris = (
            [_thumbnail(image.derive("blur", blur_by(config.blur)).pixels) for image in images]
            if reference_images and blurred
            else None
        )
        prepared = prepare(formatter, passes, list(sample.conversation), images)
        clean, without = prepared.prompts or (None, None)
        if isinstance(without, PromptError):
            raise without
    except ImageError as error:
        raise image_error(error) from error
    except PromptError as error:
        cause = str(error.args[1]).partition(" (--")[0]
        raise RequestError(422, error.kind, cause) from error
    except Exception as error:  # a processor or template that fails on one sample must not end the server
        raise RequestError(
            422, "Unusable", f"the model's processor can't take this sample ({type(error).__name__})"
        ) from error
    finally:
        for image in images:  # where an error was raised, its traceback would keep the pixels
            image.release()
    answer_tokens, limit = len(prepared.prompt.answer_positions), config.max_answer_tokens
    if answer_tokens > limit:
        raise RequestError(422, "TooLong", f"{answer_tokens} answer tokens, and the limit is {limit}")
    if prepared.prompts is None and text_only:
        return prepared.prompt
    if not (isinstance(clean, Prompt) and isinstance(without, Prompt)):
        raise RequestError(422, "NoImage", prepared.prompt.note or "there is no image to leave out")
    kernels = [blur_kernel(width) for width in widths] if blurred else []
    return PreparedSample((clean, without), sample, kernels, reference_uris)


def image_error(error: ImageError) -> RequestError:
    """What a request with this image is answered."""
    kind, _, cause = str(error).partition(": ")
    return RequestError(413 if kind == "TooLarge" else 422, kind, cause)


def _image(image: Image, formatter: Formatter, max_pixels: int) -> PromptImage:
    assert image.bytes is not None
    # Engines cache images by key: it must identify the content, whoever sends it.
    key = hashlib.blake2b(image.bytes, digest_size=16).hexdigest()
    return PromptImage(key, partial(decode_image, image.bytes, max_pixels=max_pixels), formatter.preprocess)


def _thumbnail(pixels: Pixels) -> str:
    height, width, _ = pixels.shape
    scale = min(1.0, _THUMBNAIL_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    file = io.BytesIO()
    PIL.Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)).save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
