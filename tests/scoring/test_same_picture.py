"""One picture for all samples: what it is, what it is called, and that it is made once."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import ImageArrays, Pixels, Prompt, PromptError, PromptImage
from vig_ray.scoring.reference import make_reference
from vig_ray.scoring.references import same_picture
from vig_ray.scoring.references.average import to_png
from vig_ray.scoring.references.same_picture import SamePicture, noise_picture, plain, resized

SIZES = [(100, 80), (80, 100), (100, 80), (300, 60), (64, 64), (640, 480), (128, 128)]  # width, height


def picture(size: tuple[int, int], seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def prompts(formatter: Any) -> list[Prompt]:
    """One for each of `SIZES`, each about an image of its own."""
    made = []
    for number, size in enumerate(SIZES):
        pixels = picture(size, number)
        image = PromptImage(str(number), lambda p=pixels: p, formatter.preprocess)  # type: ignore[misc]
        turns = [Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A circle.")]
        made.append(formatter.prompt(turns, [image]))
    return made


@pytest.fixture(scope="module", params=["llava", "qwen"])
def formatter(request: pytest.FixtureRequest, demo_formatter: Any, qwen_checkpoint: str) -> Any:
    return demo_formatter if request.param == "llava" else load_formatter(qwen_checkpoint)


@pytest.fixture(scope="module")
def average() -> bytes:
    rows, columns = np.mgrid[0:336, 0:336]
    return to_png(
        np.stack([rows * 255 // 335, columns * 255 // 335, (rows + columns) * 255 // 670], -1).astype("uint8")
    )


@pytest.mark.parametrize("name", ["mean", "noise", "blur-mean"])
def test_keys_are_equal_exactly_where_the_models_inputs_are(formatter: Any, name: Any, average: bytes) -> None:
    reference = make_reference(name, formatter=formatter, average=average)
    clean = prompts(formatter)
    made = [reference.without_image(prompt) for prompt in clean]
    given = [formatter.collate([prompt.images[0].inputs], "cpu", torch.float32) for prompt in made]
    for i, one in enumerate(given):
        assert made[i].token_ids is clean[i].token_ids
        assert made[i].images[0].key.startswith(f"{name}#")
        for j, other in enumerate(given):
            same = all(one[key].shape == other[key].shape and torch.equal(one[key], other[key]) for key in one)
            assert (made[i].images[0].key == made[j].images[0].key) == same, (SIZES[i], SIZES[j])
    assert made[0].images[0] is made[2].images[0]


def test_llava_has_one_mean_picture_for_all_sizes(demo_formatter: Any) -> None:
    """It pads with the same colour; Qwen2.5-VL keeps sizes, and has one for each that it makes of them."""
    reference = make_reference("mean", formatter=demo_formatter)
    assert reference.parameters == {"colour": [122, 116, 104]}
    assert not reference.needs_hiding
    made = [reference.without_image(prompt) for prompt in prompts(demo_formatter)]
    assert len({prompt.images[0].key for prompt in made}) == 1
    values = made[0].images[0].inputs["pixel_values"]
    np.testing.assert_array_equal(values, np.broadcast_to(np.array([122, 116, 104])[:, None, None], values.shape))


def test_qwen_has_one_mean_picture_for_each_size_that_it_makes(qwen_checkpoint: str) -> None:
    formatter = load_formatter(qwen_checkpoint)
    reference = make_reference("mean", formatter=formatter)
    grids: dict[str, set[tuple[int, ...]]] = {}
    for prompt in prompts(formatter):
        (image,) = reference.without_image(prompt).images
        grids.setdefault(image.key, set()).add(tuple(image.inputs["image_grid_thw"].reshape(-1).tolist()))
    assert len(grids) == len(set().union(*grids.values())) > 2
    assert all(len(of_key) == 1 for of_key in grids.values())


def test_it_is_made_once_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not kept beyond a limit of bytes, but for the last one."""
    calls: list[tuple[int, ...]] = []

    class Counting:
        mean = (0.5, 0.5, 0.5)

        def preprocess(self, pixels: Pixels) -> Any:
            calls.append(pixels.shape[:2])
            return {"pixel_values": pixels}

        def collate(self, inputs: Any, device: Any, dtype: Any) -> Any:
            return {"pixel_values": torch.from_numpy(inputs[0]["pixel_values"])}

    def made(reference: SamePicture, size: tuple[int, int]) -> PromptImage:
        image = PromptImage("a", lambda: picture(size, 0), lambda pixels: {})
        ids = np.arange(6, dtype=np.int32)
        prompt = Prompt(ids, ids[4:], ids[:2] * 0, ids == 2, np.array([[2, 3]], dtype=np.int32), (image,))
        return reference(prompt).images[0]

    reference = SamePicture("mean", plain((1, 2, 3)), Counting())  # type: ignore[arg-type]
    images = [made(reference, size) for size in ((4, 6), (6, 4), (4, 6), (6, 4))]
    assert calls == [(6, 4), (4, 6)]
    assert images[0] is images[2]
    assert images[0].key != images[1].key
    monkeypatch.setattr(same_picture, "_BYTES_KEPT", 100)
    again = [made(reference, size).key for size in ((5, 5), (4, 6), (4, 6), (6, 4))]
    assert calls == [(6, 4), (4, 6), (5, 5), (6, 4), (4, 6)]
    assert again[1] == again[2] == images[0].key
    assert again[3] == images[1].key


def test_another_number_of_tokens_is_an_error(qwen_checkpoint: str) -> None:
    """A processor that looks at the picture to decide how many tokens stand for it."""
    formatter = load_formatter(qwen_checkpoint)
    preprocess = formatter.preprocess

    def by_brightness(pixels: Pixels) -> Any:
        made = preprocess(pixels)
        return ImageArrays(made, made.text + ("<|image_pad|>" if pixels.std(axis=(0, 1)).max() == 0 else ""))

    formatter.preprocess = by_brightness
    prompt = prompts(formatter)[0]
    with pytest.raises(PromptError, match="another picture of the same size gives other token ids"):
        make_reference("mean", formatter=formatter).without_image(prompt)


def test_without_a_processor_that_normalises_the_mean_colour_is_grey(qwen_checkpoint: str) -> None:
    formatter = load_formatter(qwen_checkpoint)
    assert formatter.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    formatter.processor.image_processor.do_normalize = False
    assert make_reference("mean", formatter=formatter).parameters == {"colour": [127, 127, 127]}
    with pytest.raises(StageError, match="--reference vcd: its image processor leaves it to the model to normalise"):
        make_reference("vcd", formatter=formatter)


def test_the_noise_has_no_structure_and_is_the_same_each_time() -> None:
    noise = noise_picture(0).astype(np.float64)
    assert noise.shape == (336, 336, 3)
    np.testing.assert_array_equal(noise, noise_picture(0))
    counts = np.bincount(noise.astype(int).ravel(), minlength=256)
    assert abs(counts / counts.mean() - 1).max() < 0.2
    for axis, shift in ((0, 1), (1, 1), (2, 1), (0, 7)):
        moved = np.roll(noise, shift, axis)
        assert abs(np.corrcoef(noise.ravel(), moved.ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("size", [(336, 336), (640, 480), (50, 200)])
def test_pictures_are_resized_as_pillow_and_torch_do(size: tuple[int, int]) -> None:
    width, height = size
    noise = noise_picture(0)
    ours = resized(noise, cv2.INTER_NEAREST_EXACT)(height, width)
    np.testing.assert_array_equal(ours, np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)))
    smooth = np.asarray(Image.fromarray(noise).reduce(28).resize((336, 336), Image.Resampling.BICUBIC))
    tensor = torch.from_numpy(smooth.copy()).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[0]
    ours = resized(smooth, cv2.INTER_LINEAR)(height, width)
    assert np.abs(ours - expected.permute(1, 2, 0).numpy()).max() <= 1.0


def test_blur_mean_needs_its_picture_and_tells_which_it_was(demo_formatter: Any, average: bytes) -> None:
    with pytest.raises(StageError, match="--reference blur-mean: is the mean of a dataset's images"):
        make_reference("blur-mean", formatter=demo_formatter)
    one = make_reference("blur-mean", formatter=demo_formatter, average=average)
    other = make_reference("blur-mean", formatter=demo_formatter, average=to_png(np.zeros((336, 336, 3), np.uint8)))
    again = make_reference("blur-mean", formatter=demo_formatter, average=average)
    assert one.parameters == again.parameters != other.parameters
