"""Prompts as a tree: every prefix that several of them begin with is there once.

A node is a run of tokens, images among them; a prompt is a path from the root to a node. A causal model's state at a
token depends on the tokens before it alone, so a run is computed once for all prompts that go through it: a token sees
its ancestors and, causally, its own run. That is exact, and gradients of shared runs add up.

The runs lie in one line of N tokens, in depth-first order. So all that see a run lie behind it without a gap, up to
the end of its subtree, and the line can be cut anywhere into rows of bounded size: a row needs the keys and values of
those earlier runs that have tokens still to come, and of no others (`vig_ray.model.attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import Prompt, PromptImage

Units = npt.NDArray[np.int64]
"""What decides a token's state beside the tokens before it, one number a token: equal units, equal states."""

_ID_BITS = 24  # of a token's id, and of a place in an image
_NEVER = np.iinfo(np.int64).max
_JOIN = 32  # attending to one run more costs each token behind it about 1/32 of computing a token


@dataclass(eq=False)
class Branch:
    """A prompt as a path: `units` [l]; `token_ids` and `position_ids`, int64 [l] and [l] or [3, l].

    `images`: each image's first place, the one past its last, and itself. `places`: int64 [T], where the states lie
    that predict the answer tokens, or others that are asked for; `answers`: the answer tokens' ids.
    """

    units: Units
    token_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    images: list[tuple[int, int, PromptImage]]
    places: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]


class ImageNumbers(dict[str, int]):
    """A number for each image key, never given twice."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0

    def __missing__(self, key: str) -> int:
        self._next += 1
        self[key] = self._next
        return self._next

    def forget_all_but(self, keys: set[str]) -> None:
        """Keep these keys alone; numbers go on rising."""
        for key in self.keys() - keys:
            del self[key]


def branch(
    prompt: Prompt,
    position_ids: npt.NDArray[np.int64],
    numbers: ImageNumbers,
    *,
    end: int | None = None,
) -> Branch:
    """The path of a prompt up to its last answer token, which itself predicts nothing; hidden images are left out.

    `position_ids`: int64 [L] or [3, L], of the whole prompt, images included. `end`: the path is the tokens before this
    one instead, which is inside no image, and `places` are all of them; not for hidden images.
    """
    if end is None and not len(prompt.answer_positions):
        raise ValueError("a prompt without answer tokens has no path")
    assert end is None or not prompt.hide_images, "what is hidden has no place"
    length = int(prompt.answer_positions[-1]) if end is None else end
    kept = np.arange(length)
    if prompt.hide_images:
        kept = kept[~prompt.image_mask[:length]]
    position_ids = position_ids[..., kept]
    units = prompt.token_ids[kept].astype(np.int64)
    places = prompt.answer_positions.astype(np.int64) - 1 if end is None else kept
    images = []
    if prompt.hide_images:
        # Text behind an image that isn't there is as far along as if it were.
        along = position_ids if position_ids.ndim == 1 else position_ids.max(axis=0)
        units |= (along - np.arange(len(kept))) << _ID_BITS
        places = np.cumsum(~prompt.image_mask)[places] - 1
    else:
        for (first, past), image in zip(prompt.image_spans.tolist(), prompt.images, strict=True):
            if first < length:
                inside = np.arange(first, past)[prompt.image_mask[first:past]]
                units[inside] = -1 - ((numbers[image.key] << _ID_BITS) + inside - first)
                images.append((first, past, image))
    return Branch(
        units, prompt.token_ids[kept].astype(np.int64), position_ids, images, places, prompt.answer_ids.astype(np.int64)
    )


@dataclass(eq=False)
class Kept:
    """A prefix whose keys and values are kept: `units` from the prompt's first token on, of which the places from
    `first` on are its own (those before are another's). `keys_values`: of each layer, [1, heads, own places, D] each.
    """

    units: Units
    first: int
    images: tuple[str, ...]
    keys_values: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    last_used: int = 0

    def __len__(self) -> int:
        return len(self.units) - self.first


class KeptRun(NamedTuple):
    """Places `first` to `past` of kept keys and values, which the tokens of the line from `start` to `end` see."""

    kept: Kept
    first: int
    past: int
    start: int
    end: int


class Run(NamedTuple):
    """A run: the line's tokens from `start` to `end`; those up to `past` see it.

    `prefix`: what it would be kept as, None where few prompts go through it.
    """

    start: int
    end: int
    past: int
    prefix: Kept | None


@dataclass(eq=False)
class Tree:
    """A line of N tokens: `token_ids` int64 [N], `position_ids` int64 [N] or [3, N]; its runs, those that are kept from
    before, and its images, each with the place of its first token and the one past its last, all in rising order.

    `places[i]`: int64 [T], where in the line the states lie that predict the answer tokens of prompt i, or the others
    that its branch asks for.
    """

    token_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    runs: list[Run]
    kept: list[KeptRun]
    images: list[tuple[int, int, PromptImage]]
    places: list[npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.token_ids)

    def cut(self, start: int, most: int) -> int:
        """The end of a row from `start` on: at most `most` tokens, but an image is never cut."""
        end = min(start + most, len(self))
        for first, past, _ in self.images:
            if first < end < past:
                return past if first <= start else first
        return end


class _Node:
    """While the tree is made: the places `first` to `past` of branch `of`. `ends`: whether a prompt ends here."""

    __slots__ = (
        "answer", "children", "ends", "first", "kept", "of", "parent", "past", "prefix", "prompts", "start", "tokens",
    )  # fmt: skip

    def __init__(self, of: int, first: int, past: int, parent: _Node | None) -> None:
        self.of, self.first, self.past, self.parent = of, first, past, parent
        self.children: dict[int, _Node] = {}
        self.ends = False
        self.kept: Kept | None = None
        self.prefix: Kept | None = None
        self.prompts = 0  # that go through it
        self.answer = _NEVER  # the first place of theirs that predicts
        self.tokens = 0  # of its subtree
        self.start = 0  # in the line


def tree(
    branches: Sequence[Branch], *, kept: Sequence[Kept] = (), often: int | None = None, share: bool = True
) -> Tree:
    """The tree of these branches.

    `kept`: prefixes that needn't be computed again. `often`: runs that so many prompts go through get a `prefix`, as
    what to keep them. `share` False: no two prompts share anything.
    """
    units = [one.units for one in kept] + [one.units for one in branches]
    root = _Node(0, 0, 0, None)
    ends = []
    for number, sequence in enumerate(units):
        end = _insert(root, number, sequence, units) if share else _alone(root, number, sequence)
        if number >= len(kept):
            end.ends = True
            ends.append(end)
    for one in kept:  # nodes end where kept prefixes end
        node, place = root, 0
        while place < len(one.units):
            node = node.children[int(one.units[place])]
            place = node.past
            if node.first >= one.first:
                node.kept = one
    for end, one_branch in zip(ends, branches, strict=True):
        first = int(one_branch.places.min(initial=_NEVER))
        on_the_way: _Node | None = end
        while on_the_way is not None:
            on_the_way.prompts += 1
            on_the_way.answer = min(on_the_way.answer, first)
            on_the_way = on_the_way.parent
    order = _simplified(root)
    return _laid_out(order, branches, len(kept), ends, often)


def _insert(root: _Node, number: int, sequence: Units, units: Sequence[Units]) -> _Node:
    """Add a path; where it leaves another in the middle of a node, the node is split. Returns its last node."""
    node, place = root, 0
    while place < len(sequence):
        first = int(sequence[place])
        child = node.children.get(first)
        if child is None:
            child = node.children[first] = _Node(number, place, len(sequence), node)
            return child
        alike = min(child.past, len(sequence)) - place
        different = units[child.of][place : place + alike] != sequence[place : place + alike]
        if different.any():
            alike = int(different.argmax())
        if place + alike < child.past:
            upper = _Node(child.of, place, place + alike, node)
            upper.children[int(units[child.of][place + alike])] = child
            child.first, child.parent = place + alike, upper
            node.children[first] = child = upper
        node, place = child, place + alike
    return node


def _alone(root: _Node, number: int, sequence: Units) -> _Node:
    node = root.children[number] = _Node(number, 0, len(sequence), root)
    return node


def _simplified(root: _Node) -> list[_Node]:
    """The nodes that prompts go through, depth-first, without those that cost more than they save."""
    stack, order = [root], []
    while stack:
        node = stack.pop()
        order.append(node)
        stack += [child for child in reversed(node.children.values()) if child.prompts]
    children: dict[int, list[_Node]] = {}
    for node in reversed(order):
        below = [each for child in node.children.values() if child.prompts for each in children.pop(id(child))]
        node.tokens = sum(child.tokens for child in below)
        length = node.past - node.first
        ways = len(below) + node.ends
        pays = length * (ways - 1) * _JOIN > node.tokens + length or node.kept is not None or not below
        if node.parent is None or pays:
            children[id(node)] = [node]
            for child in below:
                child.parent = node
            node.tokens += length if node.kept is None else 0
            node.children = dict(enumerate(below))
            continue
        for child in below:  # the run becomes a part of each child's
            child.first = node.first
            child.tokens += length
        children[id(node)] = below
        if node.ends:
            node.children, node.tokens = {}, length
            children[id(node)] = [node, *below]
    stack, order = [root], []
    while stack:
        node = stack.pop()
        order.append(node)
        stack += reversed(node.children.values())
    return order[1:]


def _laid_out(
    order: Sequence[_Node], branches: Sequence[Branch], kept: int, ends: Sequence[_Node], often: int | None
) -> Tree:
    runs, kept_runs, images, pieces, positions = [], [], [], [], []
    at = 0
    for node in order:
        node.start = at
        if node.kept is not None:
            first = node.kept.first
            assert node.first >= first, "what comes before a kept prefix's own places is another's"
            kept_runs.append(KeptRun(node.kept, node.first - first, node.past - first, at, at + node.tokens))
            continue
        assert node.of >= kept, "a run of a kept prefix that is not kept"
        one = branches[node.of - kept]
        end = at + node.past - node.first
        before = node.parent
        whole = before is not None and (before.parent is None or (before.kept or before.prefix) is not None)
        if often is not None and node.prompts >= often and whole and node.past <= node.answer:
            seen = tuple(image.key for first, _, image in one.images if first < node.past)
            node.prefix = Kept(one.units[: node.past], node.first, seen)
        runs.append(Run(at, end, at + node.tokens, node.prefix))
        images += [
            (at + first - node.first, at + past - node.first, image)
            for first, past, image in one.images
            if node.first <= first < node.past
        ]
        pieces.append(one.token_ids[node.first : node.past])
        positions.append(one.position_ids[..., node.first : node.past])
        at = end
    if any(each.ndim == 2 for each in positions):
        positions = [each if each.ndim == 2 else np.broadcast_to(each, (3, len(each))) for each in positions]
    none = np.zeros(0, dtype=np.int64)
    return Tree(
        np.concatenate([none, *pieces]),
        np.concatenate(positions, axis=-1) if positions else none,
        runs,
        kept_runs,
        images,
        [_in_line(end, one.places) for end, one in zip(ends, branches, strict=True)],
    )


def _in_line(end: _Node, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where places of a path lie in the line; -1 for those in a kept prefix."""
    found = np.full(len(places), -1, dtype=np.int64)
    node: _Node | None = end
    while node is not None and node.parent is not None:
        if node.kept is None:
            inside = (places >= node.first) & (places < node.past)
            found[inside] = node.start + places[inside] - node.first
        node = node.parent
    return found
