"""Every kind of bad input becomes a row that says what was wrong, and the job ends well."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.command import call
from tests.end_to_end.conftest import read_scores
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.stage import read_stage

ONE_OF_EACH = ("--workers", "1", "--prepare-workers", "1")


def row(
    image: str | list[str] | None, question: str = "<image>\nDescribe the image.", answer: str = "A red circle."
) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "x", "conversations": turns} | ({} if image is None else {"image": image})


def bomb() -> bytes:
    """A PNG whose header promises 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def good_images(folder: Path) -> dict[str, Image.Image]:
    """The seven unusual images that are scored, and what each looks like as RGB."""
    import random

    picture = world.draw(world.random_scene(random.Random(4)))
    grey = picture.convert("L")
    written: dict[str, Callable[[Path], None]] = {}
    looks: dict[str, Image.Image] = {}
    written["cmyk.jpg"] = lambda p: picture.convert("CMYK").save(p, quality=95)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 77)
    written["deep16.png"] = deep.save
    looks["deep16.png"] = grey.convert("RGB")
    written["grey.png"] = grey.save
    looks["grey.png"] = grey.convert("RGB")
    alpha = picture.copy()
    alpha.putalpha(Image.new("L", picture.size, 128))
    written["alpha.png"] = alpha.save
    looks["alpha.png"] = picture
    palette = picture.quantize(32)
    written["palette.png"] = palette.save
    looks["palette.png"] = palette.convert("RGB")
    written["animated.gif"] = lambda p: picture.save(p, save_all=True, append_images=[grey.convert("RGB")] * 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    written["rotated.png"] = lambda p: picture.transpose(Image.Transpose.ROTATE_90).save(p, exif=exif)
    looks["rotated.png"] = picture
    for name, save in written.items():
        save(folder / name)
    return looks


@pytest.fixture(scope="module")
def bad(
    local_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, Any]], dict[str, Image.Image]]:
    """One JSONL with every kind of bad row between good ones; its scores by the name given here to each line."""
    folder = tmp_path_factory.mktemp("bad")
    images = folder / "images"
    images.mkdir()
    looks = good_images(images)
    picture = looks["rotated.png"]
    picture.save(images / "good.png")
    (folder / "outside.png").write_bytes((images / "good.png").read_bytes())
    (images / "empty.png").write_bytes(b"")
    (images / "text.jpg").write_text("this is no picture")
    (images / "truncated.jpg").write_bytes(jpeg(picture.resize((256, 256)))[:1500])
    (images / "dot.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(images / "dot.png")
    (images / "bomb.png").write_bytes(bomb())
    lines: dict[str, bytes] = {}

    def add(name: str, content: dict[str, Any]) -> None:
        lines[name] = json.dumps(content).encode()

    add("good", row("good.png"))
    for name in ("cmyk.jpg", "deep16.png", "grey.png", "alpha.png", "palette.png", "animated.gif", "rotated.png"):
        add(name, row(name))
    for name in ("missing.png", "empty.png", "truncated.jpg", "text.jpg", "dot.png", "bomb.png"):
        add(name, row(name))
    add("climbs", row("../outside.png"))
    add("no assistant", {"image": "good.png", "conversations": [{"from": "human", "value": "<image>\nq"}]})
    add("empty answer", row("good.png", answer=""))
    add("blank answer", row("good.png", answer="  "))
    add("mark in the answer", row("good.png", question="q", answer="<image> A red circle."))
    add("fewer tags", row(["good.png", "good.png"]))
    add("more tags", row("good.png", question="<image><image>\nDescribe the image."))
    add("no tag", row("good.png", question="What is it?"))
    add("too long", row("good.png", answer=" ".join(["red"] * 3000)))
    add("text only", row(None, question="How many days are in a week?", answer="A week has seven days."))
    lines["broken utf-8"] = json.dumps(row("good.png", answer="caf_")).encode().replace(b"caf_", b"caf\xe9")
    lines["garbage"] = b'{"id": "x", "conversations": [{"from":'
    lines["not an object"] = b"[1, 2]"
    add("good again", row("good.png"))
    data = folder / "bad.jsonl"
    data.write_bytes(b"\n".join(lines.values()) + b"\n")
    line = ("--data", str(data), "--images", str(images), "--model", CHECKPOINT, "--out", str(folder), "--strict")
    done = call("score", *line, "--blur", "opencv", *ONE_OF_EACH, status=1)
    (folder / "printed.txt").write_text(done.stdout)
    rows = read_scores(folder)
    assert len(rows) == len(lines)
    return folder, dict(zip(lines, rows, strict=True)), looks


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing.png", "missing.png"),
        ("empty.png", "EmptyFile: "),
        ("truncated.jpg", "truncated"),
        ("text.jpg", "not an image"),
        ("bomb.png", "TooLarge: "),
        ("climbs", "--images"),
        ("no assistant", "no assistant turn"),
        ("empty answer", "NoAnswer: "),
        ("fewer tags", "ImageCount: 1 <image> in the conversation, 2 images"),
        ("too long", "TooLong: "),
        ("broken utf-8", "UnicodeDecodeError"),
        ("garbage", "JSON"),
        ("not an object", "object"),
    ],
)
def test_bad_rows_say_why(bad, name: str, told: str) -> None:
    _, rows, _ = bad
    error = rows[name]["error"]
    assert error is not None
    assert told in error
    assert ": " in error
    assert rows[name]["vig"] is None


def test_good_and_unusual_rows_are_scored(bad) -> None:
    _, rows, looks = bad
    for name in ("good", "good again", *looks):
        assert rows[name]["error"] is None, rows[name]["error"]
        assert rows[name]["vig"] is not None
    assert rows["text only"]["error"] is None
    assert rows["text only"]["vig"] is None
    assert rows["dot.png"]["vig"] is not None
    assert rows["blank answer"]["vig"] is not None
    # As LLaVA's code has it.
    assert rows["more tags"]["clean_logprobs"] == rows["good"]["clean_logprobs"]
    assert rows["mark in the answer"]["vig"] is not None
    # Where LLaVA's code would leave the image unused, the import has put it first.
    assert rows["no tag"]["error"] is rows["no tag"]["note"] is None
    assert rows["no tag"]["vig"] is not None
    assert rows["good"]["clean_logprobs"] == rows["good again"]["clean_logprobs"]


def test_unusual_images_are_seen_as_they_look(bad, demo_formatter, demo_model) -> None:
    """The log-probs are those of the picture as RGB, the right way up."""
    from transformers import AutoImageProcessor

    from tests.oracle import blurred, plain_logprobs
    from vig_ray.model.prompt import PromptImage

    _, rows, looks = bad
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")  # as LLaVA does
    turns = [Turn("user", "<image>\nDescribe the image."), Turn("assistant", "A red circle.")]
    image = PromptImage("p", lambda: np.zeros((9, 9, 3), np.uint8), demo_formatter.preprocess)
    prompt = demo_formatter.prompt(turns, [image])
    for name, picture in looks.items():
        clean = plain_logprobs(demo_model, processor, prompt, [picture])
        reference = plain_logprobs(demo_model, processor, prompt, [blurred(picture)])
        np.testing.assert_allclose(rows[name]["clean_logprobs"], clean, atol=1e-5)
        np.testing.assert_allclose(rows[name]["blur_logprobs"], reference, atol=1e-5)


def test_failures_are_counted_by_class(bad) -> None:
    folder, rows, _ = bad
    stage = read_stage(str(folder / "scores"))
    assert stage is not None
    failed = sum(one["error"] is not None for one in rows.values())
    assert failed == 13
    assert stage["counts"]["failed"] == failed == sum(stage["counts"]["failures"].values())
    assert f"failed {failed}" in (folder / "printed.txt").read_text()


def test_too_long_can_be_cut_as_llava_does_and_is_told(bad) -> None:
    folder, _, _ = bad
    out = folder / "cut"
    line = ("--data", str(folder), "--model", CHECKPOINT, "--out", str(out), "--too-long", "truncate")
    done = call("score", *line, *ONE_OF_EACH)
    cut = [one for one in read_scores(out) if one["num_truncated_tokens"]]
    assert len(cut) == 1
    assert cut[0]["error"] is None
    assert cut[0]["num_answer_tokens"] + cut[0]["num_truncated_tokens"] == 3000 + 1
    assert "truncated 1 " in done.stdout
