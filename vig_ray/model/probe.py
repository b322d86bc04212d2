"""What a formatter makes of a few conversations, held against the family's own processor, before any sample is.

A family's processor may do more with text and images together than its parts do by themselves: other tokens around an
image, other tiles where there are several, arrays that only the whole sample has. So nobody is trusted to have it
right: token ids, answers and arrays are compared at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.model.chat import ChatFormatter
from vig_ray.model.prompt import Formatter, ImageInputs, Pixels, Prompt, PromptError, PromptImage
from vig_ray.storage import one_line

# What engines and the trainer make themselves, of `image_mask`.
_TYPES = ("mm_token_type_ids", "token_type_ids")


class Probe(NamedTuple):
    """A conversation and its images' sizes, (height, width) in pixels."""

    name: str
    conversation: tuple[Turn, ...]
    sizes: tuple[tuple[int, int], ...]


def _asked(question: str, answer: str = "A red circle, 12 beans.") -> tuple[Turn, ...]:
    return (Turn("user", question), Turn("assistant", answer))


PROBES = (
    Probe("one image", _asked(f"{IMAGE_MARK}\nWhat is it?"), ((224, 224),)),
    Probe("a question of several turns", (*_asked(f"{IMAGE_MARK}\nWhat?"), *_asked("And?", "No.")), ((96, 64),)),
    Probe("no image", _asked("What is red?"), ()),
    Probe("a wide image", _asked(f"{IMAGE_MARK}\nWhat?"), ((60, 300),)),
    Probe("a tall image", _asked(f"{IMAGE_MARK}\nWhat?"), ((200, 60),)),
    Probe("a large image", _asked(f"{IMAGE_MARK}\nWhat?"), ((1200, 1600),)),
    Probe("two images", _asked(f"{IMAGE_MARK}{IMAGE_MARK}\nWhich?"), ((64, 96), (300, 200))),
    Probe(
        "an image in a later turn",
        (*_asked(f"{IMAGE_MARK}\nWhat?"), *_asked(f"And {IMAGE_MARK}?", "Two.")),
        ((96, 96), (64, 128)),
    ),
)


def pictures(probe: Probe) -> list[Pixels]:
    """Noise, the same each time, so that no two places look alike."""
    rng = np.random.default_rng(len(probe.name))
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in probe.sizes]


def differences(formatter: ChatFormatter) -> list[str]:
    """What putting prompts together from parts does otherwise than the processor; [] where nothing differs.

    Raises PromptError where the processor itself can't be used: it refuses one image and a question, or the answers
    can't be found in what it makes of a conversation.
    """
    named = []
    wholes: list[tuple[Probe, Sequence[PromptImage], Prompt]] = []
    for probe in PROBES:
        images = [PromptImage(str(i), lambda p=p: p, formatter.arrays_of) for i, p in enumerate(pictures(probe))]  # type: ignore[misc]
        try:
            whole = formatter.as_a_whole(probe.conversation, images)
        except PromptError:
            if probe is PROBES[0]:
                raise
            # Some families take one image, and none without: such a sample is its row's error.
            if _made_from_parts(formatter, probe, images):
                named.append(f"{probe.name}: the processor refuses it")
            continue
        _check_answers(formatter, probe, whole)
        wholes.append((probe, images, whole))
        try:
            parts = formatter.from_parts(probe.conversation, images)
            differing = _differing(formatter, parts, whole)
        except Exception as error:  # whatever a processor that works in another way raises
            differing = one_line(error)[:200] or type(error).__name__
        if differing:
            named.append(f"{probe.name}: {differing}")
    if named:  # so samples go that way, which must be the processor's to the letter
        for probe, given, whole in wholes:
            if not np.array_equal(formatter.given_ids(probe.conversation, given), whole.token_ids):
                raise PromptError("Processor", f"{probe.name}: the processor gives other token ids when called plainly")
    return named


_SMALL = 1 << 18  # pixels of a probe's image: few enough tokens for a dozen forwards at every start


def probe_prompts(formatter: Formatter, probes: Sequence[Probe] = PROBES) -> list[tuple[Prompt, Prompt]]:
    """Prompts of the probes whose images are small, each also with hidden images; beside each the same as the model's
    own processor gives it, where there are two ways to it."""
    as_given = getattr(formatter, "as_a_whole", formatter.prompt)

    def loaded(pixels: Pixels) -> Callable[[], Pixels]:
        return lambda: pixels

    pairs = []
    for probe in (probe for probe in probes if all(height * width <= _SMALL for height, width in probe.sizes)):
        images = [
            PromptImage(f"{probe.name} {number}", loaded(pixels), formatter.preprocess)
            for number, pixels in enumerate(pictures(probe))
        ]
        try:
            pair = formatter.prompt(probe.conversation, images), as_given(probe.conversation, images)
        except PromptError:  # a sample that its processor refuses is that row's error
            continue
        pairs.append(pair)
        if pair[0].images:
            pairs.append((replace(pair[0], hide_images=True), replace(pair[1], hide_images=True)))
    return pairs


def _made_from_parts(formatter: ChatFormatter, probe: Probe, images: Sequence[PromptImage]) -> bool:
    try:
        formatter.from_parts(probe.conversation, images)
    except Exception:  # whatever a processor raises
        return False
    return True


def _check_answers(formatter: ChatFormatter, probe: Probe, prompt: Prompt) -> None:
    """Each answer's tokens must say the answer. Raises PromptError."""
    if probe.sizes and not prompt.image_mask.any():
        raise PromptError("Processor", f"{probe.name}: no image token {formatter.image_token!r} in the prompt")
    answers = [turn.text for turn in probe.conversation if turn.role == "assistant"]
    for number, answer in enumerate(answers):
        said = formatter.tokenizer.decode(prompt.answer_ids[prompt.turns == number].tolist())
        _, found, after = said.partition(answer)
        end = formatter.end_of_turn.of(number, len(answers)).strip()
        if not found or end not in after:
            raise PromptError("Processor", f"{probe.name}: the tokens of the answer {answer + end!r} say {said!r}")


def _differing(formatter: ChatFormatter, parts: Prompt, whole: Prompt) -> str | None:
    if not np.array_equal(parts.token_ids, whole.token_ids):
        return f"{len(parts.token_ids)} token ids, and the processor gives {len(whole.token_ids)}, or others"
    if not np.array_equal(parts.answer_positions, whole.answer_positions):
        return "other answer tokens"
    arrays = dict(whole.whole.arrays) if whole.whole is not None else {}
    for name in _TYPES:
        types = arrays.pop(name, None)
        if types is not None and not np.array_equal(types.reshape(-1), whole.image_mask):
            return f"{name} is not what tells images from text"
    ours = _joined(formatter, [image.inputs for image in parts.images])
    arrays = {name: array for name, array in arrays.items() if name not in formatter.unused_names}
    if ours.keys() != arrays.keys():
        return f"the processor gives {', '.join(sorted(arrays.keys() ^ ours.keys()))} with the whole sample only"
    for name, array in arrays.items():
        if not np.array_equal(ours[name], array) and not _same_tiles(ours[name], array):
            return f"{name} differs"
    return None


def _same_tiles(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays [images or samples, tiles, ...] hold the same tiles in the same order.

    Some processors lay all tiles of a sample in one row, and their models leave out tiles that are all zeros
    (Idefics 3, SmolVLM); that they do is seen in the numbers, which an engine compares.
    """
    if ours.ndim < 4 or ours.ndim != theirs.ndim or ours.shape[2:] != theirs.shape[2:]:
        return False
    our_tiles, their_tiles = (array.reshape(-1, *array.shape[2:]) for array in (ours, theirs))
    beside = tuple(range(1, our_tiles.ndim))
    return np.array_equal(our_tiles[our_tiles.any(axis=beside)], their_tiles[their_tiles.any(axis=beside)])


def _joined(formatter: ChatFormatter, inputs: Sequence[ImageInputs]) -> Mapping[str, Any]:
    if not inputs:
        return {}
    import torch

    return {name: tensor.numpy() for name, tensor in formatter.collate(inputs, "cpu", torch.float32).items()}
