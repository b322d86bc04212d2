"""Token gain by part of speech, where spaCy and one of its pipelines are installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.report.detokenize import token_texts
from vig_ray.report.tally import Moments
from vig_ray.scoring.gain import token_gain

USUAL = ("en_core_web_sm", "en_core_web_md", "en_core_web_lg", "en_core_web_trf")
"""Pipelines that `--tagger auto` looks for."""
_ROWS = 1000
_NO_WORD = "no word"  # the tag of spaces, and of tokens such as the end of a turn

Tags = list[tuple[int, int, str]]
"""The words of a text: first character, the one after the last, part-of-speech tag."""


@dataclass(frozen=True)
class Tagger:
    """A spaCy pipeline and its name. `tags` gives the words of each of several texts; `explain` says a tag in words."""

    name: str
    tags: Callable[[Sequence[str]], Iterable[Tags]]
    explain: Callable[[str], str]


@dataclass(frozen=True)
class GainsByTag:
    """Token gains by part-of-speech tag, over so many samples. `words`: each tag in words. `kept`: how many tokens the
    answers of the kept ones among these samples have of each tag; None without a selection."""

    tagger: str
    samples: int
    words: dict[str, str]
    gains: dict[str, Moments]
    kept: dict[str, int] | None = None


def load_tagger(asked: str) -> Tagger | None:
    """The spaCy pipeline of this name or folder; for `auto` the first of USUAL that is installed, None without any.

    Raises StageError where a pipeline that was named isn't there or assigns no tags.
    """
    if asked == "none":
        return None
    try:
        import spacy
    except ImportError as error:
        if asked == "auto":
            return None
        raise StageError(f"--tagger {asked}: spaCy isn't installed; pip install spacy and a pipeline of it") from error
    name = next(filter(spacy.util.is_package, USUAL), None) if asked == "auto" else asked
    if name is None:
        return None
    try:
        pipeline = spacy.load(name, exclude=["ner", "parser", "lemmatizer", "senter"])
        assigns_tags = any(word.pos_ or word.tag_ for word in pipeline("A red cat sits here."))
    except (OSError, ValueError, ImportError) as error:
        if asked == "auto":
            return None
        raise StageError(
            f"--tagger {asked}: no such spaCy pipeline here; python -m spacy download {asked}, or name its folder"
        ) from error
    if not assigns_tags:
        if asked == "auto":
            return None
        raise StageError(f"--tagger {asked}: assigns no parts of speech; take a pipeline with a tagger")

    def tags(texts: Sequence[str]) -> Iterable[Tags]:
        for document in pipeline.pipe(texts):
            yield [
                (word.idx, word.idx + len(word.text), _NO_WORD if word.is_space else word.pos_ or word.tag_)
                for word in document
            ]

    return Tagger(name, tags, lambda tag: spacy.explain(tag) or tag)


def gains_by_tag(
    tagger: Tagger, tokenizer: Any, tables: Sequence[pa.Table], kept: Collection[str] | None = None
) -> GainsByTag | None:
    """Token gains by the part of speech of the word that each token begins in; None where there is no sample.

    `tables`: rows of scores/ with their keys, tokens, turns and log-probs. `kept`: the keys of those that a selection
    keeps.
    """
    special = set(tokenizer.all_special_ids)
    by_tag: dict[str, Moments] = {}
    of_kept: Counter[str] = Counter()
    batches = (batch.to_pylist() for table in tables for batch in table.to_batches(max_chunksize=_ROWS))
    for rows in batches:
        texts, pieces_of_texts, gains, is_kept = [], [], [], []
        for row in rows:
            pieces = token_texts(tokenizer, row["token_ids"], row["turn"])
            # Without special tokens: the end of a turn would stick to the word before it.
            pieces = ["" if token in special else piece for token, piece in zip(row["token_ids"], pieces, strict=True)]
            gain = token_gain(row["clean_logprobs"], row["reference_logprobs"])
            for turn in sorted(set(row["turn"])):
                in_turn = [index for index, number in enumerate(row["turn"]) if number == turn]
                texts.append("".join(pieces[index] for index in in_turn))
                pieces_of_texts.append([pieces[index] for index in in_turn])
                gains.append(gain[in_turn])
                is_kept.append(kept is not None and row["sample_key"] in kept)
        tags: list[str] = []
        for pieces, words, counted in zip(pieces_of_texts, tagger.tags(texts), is_kept, strict=True):
            of_text = tag_pieces(pieces, words)
            tags += of_text
            of_kept.update(of_text if counted else ())
        different, category = np.unique(tags, return_inverse=True)
        moments = Moments.of(np.concatenate(gains), category.astype(np.int64), len(different))
        for index, tag in enumerate(map(str, different)):
            of_tag = Moments(moments.count[[index]], moments.total[[index]], moments.square[[index]])
            by_tag[tag] = by_tag[tag] + of_tag if tag in by_tag else of_tag
    if not by_tag:
        return None
    in_words = {tag: tag if tag == _NO_WORD else tagger.explain(tag) for tag in by_tag}
    samples = sum(table.num_rows for table in tables)
    return GainsByTag(tagger.name, samples, in_words, by_tag, None if kept is None else dict(of_kept))


def tag_pieces(pieces: Sequence[str], words: Tags) -> list[str]:
    """The tag of each piece: that of its first character that isn't a space. The pieces joined are the tagged text."""
    by_character = {index: tag for first, end, tag in words for index in range(first, end)}
    tags, start = [], 0
    for piece in pieces:
        first = start + len(piece) - len(piece.lstrip())
        tags.append(by_character.get(first, _NO_WORD) if piece.strip() else _NO_WORD)
        start += len(piece)
    return tags
