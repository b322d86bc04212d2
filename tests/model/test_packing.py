"""Prompts as a tree: every path whole, in rows of any size; attention against a plain softmax in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vig_ray.model.attention import packed_attention
from vig_ray.model.kernels import Flash, Plain
from vig_ray.model.packing import Branch, ImageNumbers, Kept, Tree, branch, tree
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.model.row import Stored, row_of

HEADS, FEWER, WIDTH = 4, 2, 16
MODULE = torch.nn.Identity()


def paths(rng: np.random.Generator, count: int) -> list[Branch]:
    """Runs put together from a few, so that many begin alike, some are the beginning of others, some are equal."""
    runs = [rng.integers(1, 50, rng.integers(1, 60)) for _ in range(3)]
    made = []
    for _ in range(count):
        parts = [runs[0][: rng.integers(1, len(runs[0]) + 1)]]
        parts += [runs[rng.integers(3)] for _ in range(rng.integers(0, 3))]
        parts += [rng.integers(1, 50, rng.integers(0, 30))]
        ids = np.concatenate(parts).astype(np.int64)
        places = np.sort(rng.choice(len(ids), min(3, len(ids)), replace=False))
        made.append(Branch(ids, ids, np.arange(len(ids)), [], places, ids[places]))
    return made


def states(ids: np.ndarray[Any, Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of tokens by their ids alone, [1, heads, N, D]."""
    made = []
    for number, heads in enumerate((HEADS, FEWER, FEWER)):
        table = torch.randn(64, heads * WIDTH, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        made.append(table[torch.from_numpy(ids)].to(dtype).view(1, len(ids), heads, WIDTH).transpose(1, 2))
    return made[0], made[1], made[2]


def by_definition(query: Any, key: Any, value: Any, visible: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(D)) v over what is visible, [1, N, heads, D]."""
    key, value = (each.repeat_interleave(HEADS // FEWER, 1) for each in (key, value))
    scores = (query @ key.transpose(-1, -2) / WIDTH**0.5).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def alone(one: Branch) -> torch.Tensor:
    """Its states' attention where the path lies by itself, [T, heads, D]."""
    length = len(one.units)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return by_definition(*states(one.token_ids, torch.float64), causal)[0, torch.from_numpy(one.places)]


def in_rows(packed: Tree, most: int) -> torch.Tensor:
    """Attention over the whole tree, row by row, [N, heads, D] float32."""
    query, key, value = states(packed.token_ids, torch.float32)
    stored: dict[int, Stored] = {}
    found, start = [], 0
    while start < len(packed):
        end = packed.cut(start, most)
        later: dict[int, Stored] = {}
        row = row_of(packed, start, end, stored, later)
        found.append(packed_attention(MODULE, *(x[:, :, start:end] for x in (query, key, value)), None, row=row)[0])
        for number, new in later.items():
            old = stored.get(number)
            stored[number] = new if old is None else {
                layer: (torch.cat([old[layer][0], k], 2), torch.cat([old[layer][1], v], 2))
                for layer, (k, v) in new.items()
            }  # fmt: skip
        start = end
    return torch.cat(found, 1)[0]


@pytest.mark.parametrize("kernel", ["flash", "plain products where it is short"])
@pytest.mark.parametrize("seed", range(8))
def test_every_path_sees_what_it_sees_alone(seed: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "flash":
        monkeypatch.setattr("vig_ray.model.kernels._SHORT", 0)
    rng = np.random.default_rng(seed)
    branches = paths(rng, int(rng.integers(1, 30)))
    for share in (True, False):
        packed = tree(branches, share=share)
        for one, places in zip(branches, packed.places, strict=True):
            assert packed.token_ids[places].tolist() == one.token_ids[one.places].tolist()
            assert packed.position_ids[places].tolist() == one.places.tolist()
        for most in (1, 7, 64, len(packed)):
            found = in_rows(packed, most)
            for one, places in zip(branches, packed.places, strict=True):
                torch.testing.assert_close(
                    found[torch.from_numpy(places)].double(), alone(one), atol=5e-6, rtol=0, check_dtype=False
                )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kernel", ["flash", "of the device", "plain products"])
def test_gradients_of_what_is_shared_add_up(seed: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "flash":
        monkeypatch.setattr("vig_ray.model.kernels._SHORT", 0)
    if kernel == "plain products":
        monkeypatch.setattr("vig_ray.model.attention.kernel_for", lambda *_: Plain())
        monkeypatch.setattr("vig_ray.model.kernels._SCORES_AT_ONCE", 300)  # a few queries at a time
    rng = np.random.default_rng(seed)
    branches = paths(rng, 12)
    packed = tree(branches)
    length = len(packed)
    visible = torch.zeros(length, length, dtype=torch.bool)
    for run in packed.runs:
        visible[run.start : run.past, run.start : run.end] = True
    visible &= torch.ones_like(visible).tril()
    given = [x.requires_grad_() for x in states(packed.token_ids, torch.float64)]
    expected = by_definition(*given, visible)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    theirs = torch.autograd.grad(expected, given, weights)
    ours = [x.detach().float().requires_grad_() for x in given]
    found, _ = packed_attention(MODULE, *ours, None, row=row_of(packed, 0, length))
    torch.testing.assert_close(found.double(), expected.detach(), atol=5e-6, rtol=0)
    for one, other in zip(torch.autograd.grad(found, ours, weights.float()), theirs, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=1e-5)


def test_the_gpus_kernel_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: PyTorch's own operators check the arguments and give the shapes, on tensors without numbers."""
    monkeypatch.setattr("vig_ray.model.attention.kernel_for", lambda *_: Flash())
    packed = tree(paths(np.random.default_rng(1), 12))
    row = row_of(packed, 0, len(packed))
    assert row.above
    given = [x.to("meta", torch.bfloat16).requires_grad_() for x in states(packed.token_ids, torch.float32)]
    found, _ = packed_attention(MODULE, *given, None, row=row)
    assert (found.shape, found.dtype) == ((1, len(packed), HEADS, WIDTH), torch.bfloat16)
    for one, gradient in zip(given, torch.autograd.grad(found, given, torch.empty_like(found)), strict=True):
        assert (gradient.shape, gradient.dtype) == (one.shape, torch.bfloat16)
    part, lse = Flash().whole(given[0], given[1][:, :, :7], given[2][:, :, :7], row, 1.0)
    assert (part.shape, lse.shape) == (given[0].shape, given[0].shape[:3])
    assert lse.dtype == torch.float32


def test_bfloat16_is_joined_in_float32() -> None:
    branches = paths(np.random.default_rng(3), 20)
    packed = tree(branches)
    query, key, value = (x.bfloat16() for x in states(packed.token_ids, torch.float64))
    found, _ = packed_attention(MODULE, query, key, value, None, row=row_of(packed, 0, len(packed)))
    assert found.dtype == torch.bfloat16
    exact = in_rows(packed, len(packed))
    assert float((found[0].float() - exact).abs().max()) < 0.05


def prompt(text: Sequence[int], image: str | None = None, *, hidden: bool = False, answers: int = 2) -> Prompt:
    """A prompt with an image of 5 tokens (id 9) behind its third token."""
    ids = [*text[:3], *([9] * 5 if image else []), *text[3:]]
    token_ids = np.asarray(ids, dtype=np.int32)
    spans = np.asarray([[3, 8]] if image else [], dtype=np.int32).reshape(-1, 2)
    positions = np.arange(len(ids) - answers, len(ids), dtype=np.int32)
    images = (PromptImage(image, lambda: None, lambda _: {}),) if image else ()  # type: ignore[arg-type, return-value]
    return Prompt(token_ids, positions, positions * 0, token_ids == 9, spans, images, hide_images=hidden)


def branches_of(prompts: Sequence[Prompt], numbers: ImageNumbers | None = None) -> list[Branch]:
    numbers = ImageNumbers() if numbers is None else numbers
    return [branch(one, np.arange(len(one.token_ids)), numbers) for one in prompts]


SYSTEM = list(range(10, 13))


def long(*last: int) -> list[int]:
    return [*SYSTEM, *range(20, 60), *last]


def test_an_image_is_there_once_for_its_samples_and_never_for_others() -> None:
    same = [prompt(long(1, 2, 3, 4), "a"), prompt(long(5, 6, 7, 8), "a")]
    packed = tree(branches_of([*same, prompt(long(1, 2, 3, 4), "b")]))
    assert [image.key for _, _, image in packed.images] == ["a", "b"]
    # The system prompt, the image and the text up to where the two differ; the last answer token isn't there.
    assert len(packed) == 2 * (3 + 5 + 40) + 3 * 3  # the system prompt is too short to be worth a run of its own


def test_hidden_images_leave_the_text_where_it_was() -> None:
    packed = tree(branches_of([prompt(long(1, 2, 3), "a", hidden=True)]))
    assert packed.position_ids.tolist() == [0, 1, 2, *range(8, 50)]
    assert not packed.images
    # Text behind a hidden image isn't the same as text behind none: it stands elsewhere.
    both = tree(branches_of([prompt(long(1, 2, 3), "a", hidden=True), prompt(long(1, 2, 3))]))
    assert sorted(both.position_ids[places].tolist() for places in both.places) == [[43, 44], [48, 49]]


def test_a_row_never_cuts_an_image() -> None:
    packed = tree(branches_of([prompt(long(1, 2, 3), "a"), prompt(long(1, 2, 3), "b")]), share=True)
    for most in range(1, 20):
        start = 0
        while start < len(packed):
            end = packed.cut(start, most)
            assert end > start
            assert not any(first < end < past for first, past, _ in packed.images)
            start = end


def kept_of(packed: Tree) -> list[Kept]:
    """What a run of the tree would keep, with keys and values."""
    _, key, value = states(packed.token_ids, torch.float32)
    kept = []
    for run in packed.runs:
        if run.prefix is not None:
            places = slice(run.start, run.end)
            run.prefix.keys_values[id(MODULE)] = key[:, :, places], value[:, :, places]
            kept.append(run.prefix)
    return kept


def test_what_many_begin_with_is_computed_once_for_all_calls() -> None:
    numbers = ImageNumbers()
    first = [prompt(long(number, 2, 3, 4), "mean") for number in range(1, 9)]
    packed = tree(branches_of(first, numbers), often=8)
    kept = kept_of(packed)
    assert sum(map(len, kept)) == 3 + 5 + 40
    again = branches_of([prompt(long(number, 5, 6, 7), "mean") for number in range(1, 9)], numbers)
    less = tree(again, kept=kept, often=8)
    assert len(less) == 8 * 3
    assert not less.images
    found = in_rows(less, 10)
    for one, places in zip(again, less.places, strict=True):
        torch.testing.assert_close(found[torch.from_numpy(places)].double(), alone(one), atol=5e-6, rtol=0)
    # Another image, or other text, takes as much of it as is the same.
    other = branches_of([prompt(long(1, 2, 3, 4), "another"), prompt(long(1, 2, 3, 4), "mean")], numbers)
    packed = tree(other, kept=kept)
    assert [image.key for _, _, image in packed.images] == ["another"]
    found = in_rows(packed, 1000)
    for one, places in zip(other, packed.places, strict=True):
        torch.testing.assert_close(found[torch.from_numpy(places)].double(), alone(one), atol=5e-6, rtol=0)


def test_a_prefix_that_predicts_is_not_kept() -> None:
    packed = tree(branches_of([prompt([*SYSTEM, *range(20, 60)], "a", answers=41 + 5)] * 10), often=8)
    assert all(run.prefix is None for run in packed.runs)


def test_a_prompt_that_predicts_nothing_has_no_path() -> None:
    one = prompt(long(1, 2))
    none = replace(one, answer_positions=one.answer_positions[:0])
    with pytest.raises(ValueError, match="without answer tokens"):
        branches_of([none])
