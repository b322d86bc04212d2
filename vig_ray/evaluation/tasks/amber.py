"""AMBER: descriptions, and yes/no questions of existence, attributes and relations, of the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vig_ray.errors import StageError
from vig_ray.evaluation.files import Record, image_folder, marked, read_json, read_text, records
from vig_ray.evaluation.objects import singular, words_of
from vig_ray.evaluation.parsing import contained_yes_no
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean, ratio
from vig_ray.evaluation.yes_no import ANSWERED, SHORT, choices_of, counts_of, marks_of, suffixed
from vig_ray.storage import exists, join

DIMENSIONS = {
    "existence": ("discriminative-hallucination",),
    "attribute": tuple(f"discriminative-attribute-{kind}" for kind in ("state", "number", "action")),
    "relation": ("discriminative-relation", "relation"),
}
_TYPES = ("generative", *(each for types in DIMENSIONS.values() for each in types))
_PARTS = ("all", "generative", "discriminative", *DIMENSIONS)
_COUNTS = ("accuracy", "precision", "recall", "f1")
_GENERATIVE = ("mentioned", "invented", "covered", "shown", "tempting", "tempted", "hallucinates")

_DETERMINERS = frozenset(
    ("a", "an", "the", "this", "that", "one", "two", "three", "another", "each", "his", "her", "its", "their", "my")
)
# Of the list's words, what captions have as verbs mostly: a noun only after one of these. "hot" and "leave" never are.
_AFTER = dict.fromkeys(("watch", "drink", "ski", "drawing"), _DETERMINERS) | {
    "can": _DETERMINERS | {"trash", "garbage", "soda", "beer", "tin", "watering", "paint", "spray"}
}
_NEVER = frozenset(("hot", "leave"))


class Amber:
    """CHAIR, Cover, Hal and Cog of descriptions; accuracy, and precision, recall and F1 of the answer no."""

    name = "amber"
    source = "Wang et al. 2023, AMBER, arXiv:2311.07397"
    options: Mapping[str, str] = {
        "part": "all (default), generative, discriminative, existence, attribute or relation",
        "prompt": "plain (default): the authors' query alone; short: yes/no queries ask for a single word or phrase",
        "answered": f"of yes/no queries; {ANSWERED}",
        "max_new_tokens": "of an answer, 512 by default",
    }
    max_new_tokens = 512
    by = "first"
    metrics_of = (
        Metric("AMBER", main=True),
        Metric("CHAIR", higher_is_better=False),
        Metric("Cover"),
        Metric("Hal", higher_is_better=False),
        Metric("Cog", higher_is_better=False),
        *(Metric(name) for name in _COUNTS),
        Metric("unread", higher_is_better=False),
        *(Metric(f"{dimension} {name}") for dimension in DIMENSIONS for name in _COUNTS),
    )

    def files(self, given: Given) -> Mapping[str, str]:
        """Those that decide marks."""
        return {name: _file(given.data, name) for name in ("relation.json", "safe_words.txt")}

    def begin(self, given: Given) -> None:
        """Read which words go with which, and which are let pass. Raises StageError."""
        self.max_new_tokens = given.whole(self.name, "max_new_tokens", self.max_new_tokens)
        self._related = _relation(_file(given.data, "relation.json"))
        self._safe = frozenset(read_text(_file(given.data, "safe_words.txt")).split())
        named = (word for word, related in self._related.items() for word in (word, *related))
        self._known = {word.lower(): word for word in named}

    def read(self, given: Given) -> Iterator[Question]:
        """The queries of query_all.json with what annotations.json has under their ids."""
        part = given.choice(self.name, "part", _PARTS)
        suffix = {"plain": "", "short": SHORT}[given.choice(self.name, "prompt", ("plain", "short"))]
        choices, folder = choices_of(given, self.name), image_folder(given)
        truths = {row.name("id"): row for row in records(_file(given.data, "annotations.json"))}
        for row in records(_file(given.data, "query_all.json")):
            truth = truths.get(row.name("id"))
            if truth is None:
                raise row.fault("no entry of annotations.json has its id")
            kind = truth.one_of("type", _TYPES)
            dimension = next((name for name, types in DIMENSIONS.items() if kind in types), "generative")
            if part not in ("all", dimension) and not (part == "discriminative" and dimension != "generative"):
                continue
            images, query = row.images("image", folder), row.text("query")
            written = dimension == "generative"
            label = None if written else truth.one_of("truth", ("yes", "no"))
            yield Question(
                id=row.name("id"),
                prompt=marked(query if written else suffixed(query, suffix), images),
                images=images,
                expected={name: truth.texts(name) for name in ("truth", "hallu")} if written else label,
                choices=() if written else choices,
                answer=label and label.capitalize(),
                group=dimension,
                unit=row.text("image"),
            )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Of a description, counts of its objects; of a yes or no, whether it is right. NaN for the other kind."""
        nan, number = float("nan"), _number(question.group)
        if number < 0:
            of_description = self._described(answer.text, question.expected)
            unasked = dict.fromkeys(marks_of(None, "no"), nan)
            score = 1 - of_description["hallucinates"]
            return {**unasked, **of_description, "score": score, "dimension": nan}
        marks = marks_of(contained_yes_no(answer.text), question.expected)
        return {**dict.fromkeys(_GENERATIVE, nan), **marks, "dimension": float(number)}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """AMBER is the mean of 1 - CHAIR and F1; of what was asked for of the two. NaN where descriptions that
        were asked for name no object, and so have no CHAIR."""
        found = {
            "CHAIR": ratio(marks["invented"], marks["mentioned"], weights_N),
            "Cover": ratio(marks["covered"], marks["shown"], weights_N),
            "Hal": mean(marks["hallucinates"], weights_N),
            "Cog": ratio(marks["tempted"], marks["tempting"], weights_N),
        }
        asked_N = weights_N * (marks["dimension"] >= 0)
        found |= counts_of(marks, asked_N, "no", unread_is_missed=True)._asdict()
        found["unread"] = mean(1 - marks["said_yes"] - marks["said_no"], asked_N)
        for number, name in enumerate(DIMENSIONS):
            of_dimension = counts_of(marks, weights_N * (marks["dimension"] == number), "no", unread_is_missed=True)
            found |= {f"{name} {count}": value for count, value in of_dimension._asdict().items()}
        described = bool((weights_N * np.isnan(marks["dimension"])).sum())
        asked = [found["f1"]] if asked_N.any() else []
        parts = [1 - found["CHAIR"], *asked] if described else asked
        found["AMBER"] = sum(parts) / len(parts) if parts else float("nan")
        return found

    def _described(self, text: str, expected: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Counts of a description, by the authors' steps but for near synonyms."""
        covered, tempted, invented = set(), set(), 0
        mentioned = self._nouns(text)
        for noun in mentioned:
            if noun in self._safe:
                continue
            if (place := self._place(noun, expected["truth"])) is not None:
                covered.add(place)
                continue
            invented += 1
            if (place := self._place(noun, expected["hallu"])) is not None:
                tempted.add(place)
        counts = (len(mentioned), invented, len(covered), len(expected["truth"]), len(expected["hallu"]), len(tempted))
        return dict(zip(_GENERATIVE, map(float, (*counts, invented > 0)), strict=True))

    def _place(self, noun: str, words: Sequence[str]) -> int | None:
        """The first of an image's words that a noun goes with, else the first that it is; None where there is none."""
        for place, word in enumerate(words):
            if noun in self._related.get(word, ()):
                return place
        return words.index(noun) if noun in words else None

    def _nouns(self, text: str) -> list[str]:
        """The words of the list that a text has, in the singular and as the list spells them."""
        found, words = [], words_of(text)
        for before, word in zip(["", *words], words, strict=False):
            noun = singular(word, self._known)
            verb = noun == word and before not in _AFTER.get(noun, (before,))
            if noun in self._known and noun not in _NEVER and not verb:
                found.append(self._known[noun])
        return found


def _number(group: str | None) -> int:
    names = list(DIMENSIONS)
    return names.index(group) if group in names else -1


def _file(data: str, name: str) -> str:
    """A file of the authors' folder, or of its folder `query`."""
    for uri in (join(data, name), join(data, "query", name)):
        if exists(uri).name == "File":
            return uri
    raise StageError(f"{data}: no {name}; expected the folder data/ of AMBER's repository")


def _relation(uri: str) -> dict[str, list[str]]:
    relation = read_json(uri)
    if not isinstance(relation, dict):
        raise StageError(f"{uri}: expected an object of words and those that go with them")
    return {word: Record(uri, relation).texts(word) for word in relation}
