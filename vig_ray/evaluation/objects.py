"""The objects that a caption mentions, as CHAIR counts them: singular words, two-word objects, synonyms.

Rohrbach et al. 2018, Object Hallucination in Image Captioning, arXiv:1809.02156, and its authors' program.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from itertools import pairwise

from vig_ray.errors import StageError

COCO_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
    *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
    *("scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""COCO's categories, in its order."""

# Two words that are one object, or none: without them "train tracks" would be a train.
_PAIRS = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "laptop computer", "home plate", "train track"),
)
_ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
# Two words of which only the second is an object: a baby bird is no person, a toilet's seat no chair.
_READ_AS = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
}
_IRREGULAR = {"people": "person", "children": "child", "geese": "goose", "mice": "mouse", "oxen": "ox", "feet": "foot"}
# A plural's ending and what it may stand for; the first that gives a known word is taken.
_ENDINGS = (
    *(("ies", ("y", "ie")), ("ves", ("f", "fe", "ve")), ("men", ("man",)), ("s", ("",))),
    *((f"{sibilant}es", (sibilant,)) for sibilant in ("s", "x", "z", "ch", "sh", "o")),
)
# A word keeps its hyphens ("man-made" is no man), and "o'clock" is one; any other mark stands alone, so that no pair
# reaches across one.
_WORDS = re.compile(r"\b[^\W_]['’][^\W_]{2,}|[^\W_]+(?:-[^\W_]+)*|[^\s]")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, and between them its marks, one by one."""
    return _WORDS.findall(text.lower())


def is_word(token: str) -> bool:
    """Whether this is a word, and not a mark."""
    return token[0].isalnum()


def singular(word: str, known: Container[str]) -> str:
    """The singular of a word where that is among `known`, a set or mapping; else the word as it is."""
    if word in known:
        return word
    if (irregular := _IRREGULAR.get(word, word)) in known:
        return irregular
    for ending, stands_for in _ENDINGS:
        if word.endswith(ending):
            for end in stands_for:
                if (found := word[: -len(ending)] + end) in known:
                    return found
    return word


class Objects:
    """The objects that are looked for, by the lines of a list of synonyms: the object itself, then its synonyms."""

    def __init__(self, lines: Sequence[Sequence[str]]) -> None:
        self.by_word: Mapping[str, str] = {word: line[0] for line in lines for word in line}
        pairs = {pair: pair for pair in (*_PAIRS, *self.by_word) if len(pair.split(" ")) == 2} | _READ_AS
        self._pairs: Mapping[str, str] = pairs
        self._known = {part for phrase in (*self.by_word, *pairs) for part in phrase.split(" ")} | {"seat"}

    def mentioned(self, caption: str) -> list[str]:
        """The objects of a caption in its order, each as often as it is mentioned, by the first word of their lines."""
        words = self._with_pairs([singular(word, self._known) for word in words_of(caption)])
        if "toilet" in words and "seat" in words:  # "the seat of the toilet"
            words = [word for word in words if word != "seat"]
        return [self.by_word[word] for word in words if word in self.by_word]

    def _with_pairs(self, words: list[str]) -> list[str]:
        """The words, two that belong together as one."""
        found, taken = [], False
        for word, after in pairwise([*words, ""]):
            if taken:
                taken = False
            elif (pair := self._pairs.get(f"{word} {after}")) is not None:
                found.append(pair)
                taken = True
            else:
                found.append(word)
        return found


def read_synonyms(uri: str, text: str) -> Objects:
    """The objects of a list of synonyms as CHAIR's authors have it: a line an object, its words after commas.

    `uri`: named in errors. Raises StageError for a list without a line, and for a word that is empty or whose line
    begins with none.
    """
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        words = [" ".join(word.lower().split()) for word in line.split(",")]
        if not line.strip():
            continue
        if not words[0]:
            raise StageError(f"{uri}, line {number}: begins with a comma; expected an object and its synonyms")
        lines.append([word for word in words if word])
    if not lines:
        raise StageError(f"{uri}: no line; expected an object a line, its synonyms after commas")
    return Objects(lines)
