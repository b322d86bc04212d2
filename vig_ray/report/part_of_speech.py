"""Token gain by part of speech, where spaCy and one of its pipelines are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.report.detokenize import pieces_of
from vig_ray.report.tally import Moments
from vig_ray.scoring.gain import token_gain

USUAL = ("en_core_web_sm", "en_core_web_md", "en_core_web_lg", "en_core_web_trf")
"""Pipelines that `--tagger auto` looks for."""
_ROWS = 1000
_NO_WORD = "no word"  # spaces, and tokens such as the end of a turn

Tags = list[tuple[int, int, str]]
"""Words of a text: first character, end, part of speech."""


@dataclass(frozen=True)
class Tagger:
    """A pipeline and its name. `tags`: of several texts. `explain`: a part of speech in words."""

    name: str
    tags: Callable[[Sequence[str]], Iterable[Tags]]
    explain: Callable[[str], str]


@dataclass(frozen=True)
class Spoken:
    """Token gains by part of speech, of so many samples; `words`: each part of speech in words."""

    tagger: str
    samples: int
    words: dict[str, str]
    gains: dict[str, Moments]


def load_tagger(asked: str) -> Tagger | None:
    """The spaCy pipeline of this name (or folder); `auto`: the first usual one, None without any.

    Raises StageError where it is asked for by name and isn't there.
    """
    if asked == "none":
        return None
    try:
        import spacy
    except ImportError as error:
        if asked == "auto":
            return None
        raise StageError(f"--tagger {asked}: spaCy isn't installed; pip install spacy and a pipeline of it") from error
    found = next(filter(spacy.util.is_package, USUAL), None) if asked == "auto" else asked
    if found is None:
        return None
    try:
        pipeline = spacy.load(found, exclude=["ner", "parser", "lemmatizer", "senter"])
        tagged = any(word.pos_ or word.tag_ for word in pipeline("A red cat sits here."))
    except (OSError, ValueError, ImportError) as error:
        if asked == "auto":
            return None
        raise StageError(
            f"--tagger {asked}: no such spaCy pipeline here; python -m spacy download {asked}, or name its folder"
        ) from error
    if not tagged:
        if asked == "auto":
            return None
        raise StageError(f"--tagger {asked}: assigns no parts of speech; take a pipeline with a tagger")

    def tags(texts: Sequence[str]) -> Iterable[Tags]:
        for document in pipeline.pipe(texts):
            yield [
                (word.idx, word.idx + len(word.text), _NO_WORD if word.is_space else word.pos_ or word.tag_)
                for word in document
            ]

    return Tagger(found, tags, lambda tag: spacy.explain(tag) or tag)


def by_speech(tagger: Tagger, tokenizer: Any, tables: Sequence[pa.Table]) -> Spoken | None:
    """Token gains by the part of speech of the word that a token begins in; None where there is no sample."""
    special = set(tokenizer.all_special_ids)
    found: dict[str, Moments] = {}
    rows = (batch.to_pylist() for table in tables for batch in table.to_batches(max_chunksize=_ROWS))
    for part in rows:
        texts, owners, gains = [], [], []
        for row in part:
            spelled = pieces_of(tokenizer, row["token_ids"], row["turn"])
            # The end of a turn would stick to the word before it.
            pieces = ["" if token in special else piece for token, piece in zip(row["token_ids"], spelled, strict=True)]
            gain = token_gain(row["clean_logprobs"], row["reference_logprobs"])
            for turn in sorted(set(row["turn"])):
                own = [place for place, of_turn in enumerate(row["turn"]) if of_turn == turn]
                texts.append("".join(pieces[place] for place in own))
                owners.append([pieces[place] for place in own])
                gains.append(gain[own])
        names = [
            name for pieces, words in zip(owners, tagger.tags(texts), strict=True) for name in tags_of(pieces, words)
        ]
        known, category = np.unique(names, return_inverse=True)
        moments = Moments.of(np.concatenate(gains), category.astype(np.int64), len(known))
        for at, name in enumerate(map(str, known)):
            own_part = Moments(moments.count[[at]], moments.total[[at]], moments.square[[at]])
            found[name] = found[name] + own_part if name in found else own_part
    if not found:
        return None
    words = {name: name if name == _NO_WORD else tagger.explain(name) for name in found}
    return Spoken(tagger.name, sum(table.num_rows for table in tables), words, found)


def tags_of(pieces: Sequence[str], words: Tags) -> list[str]:
    """The part of speech of each piece's first character that isn't a space; pieces joined are the tagged text."""
    by_character = {place: tag for first, end, tag in words for place in range(first, end)}
    found, start = [], 0
    for piece in pieces:
        visible = start + len(piece) - len(piece.lstrip())
        found.append(by_character.get(visible, _NO_WORD) if piece.strip() else _NO_WORD)
        start += len(piece)
    return found
