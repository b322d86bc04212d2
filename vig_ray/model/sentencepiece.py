"""A SentencePiece model (`tokenizer.model`) as a tokenizer with character offsets that gives the same token ids.

LLaMA's and Vicuna's first checkpoints, and LLaVA's own, have no other file. SentencePiece joins the pair whose piece
has the highest score; transformers 5 makes merges in the order of the vocabulary instead, so that runs of spaces, code
and rare words come out as other tokens.
"""

from __future__ import annotations

import os
import random
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, models, normalizers

from vig_ray.errors import StageError

FILE = "tokenizer.model"
_SPACE = "\u2581"
# Scripts by code points, spaces, code and emoji: what a vocabulary has pieces for, and what it spells in bytes.
_SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF),
    (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x2000, 0x206F), (0x2190, 0x22FF), (0x3000, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFE00, 0xFE0F), (0x1F300, 0x1F6FF), (0x20000, 0x2A6DF),
)  # fmt: skip
_CODE = ("def f(x):", "return", "==", "!=", "->", "://", "{}", "[]", "();", "//", "/*", "<br>", "&nbsp;", "\\n", "__")


class Pieces:
    """A SentencePiece model's pieces, by its own library."""

    def __init__(self, path: str) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self.processor = SentencePieceProcessor(model_file=path)
        except (OSError, RuntimeError) as error:
            raise StageError(f"{path}: not a SentencePiece model") from error
        of = self.processor
        self.vocabulary = {of.id_to_piece(index): index for index in range(len(of))}
        self.joined = {
            piece: index
            for piece, index in self.vocabulary.items()
            if not (of.is_control(index) or of.is_unknown(index) or of.is_byte(index) or of.is_unused(index))
        }
        self.unknown = of.id_to_piece(of.unk_id())


def _model(pieces: Pieces) -> models.BPE:
    """Merges in the order in which SentencePiece makes them: by the score of the piece that comes out."""
    known, score = pieces.joined, pieces.processor.get_score
    merges = sorted(
        (-score(index), known[piece[:cut]], known[piece[cut:]], piece[:cut], piece[cut:])
        for piece, index in known.items()
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    )
    pairs = [(left, right) for *_, left, right in merges]
    return models.BPE(pieces.vocabulary, pairs, unk_token=pieces.unknown, fuse_unk=True, byte_fallback=True)


@lru_cache(maxsize=2)
def random_texts(count: int, seed: int = 0) -> tuple[str, ...]:
    """Texts of words, digits, runs of spaces, code, all scripts and emoji, the same for a seed."""
    draw = random.Random(seed)

    def letters() -> str:
        first, last = draw.choice(_SCRIPTS)
        return "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 8)))

    def part() -> str:
        kind = draw.randrange(8)
        if kind == 0:
            return " " * draw.randint(1, 20)
        if kind == 1:
            return str(draw.randint(0, 10 ** draw.randint(1, 9)))
        if kind == 2:
            return draw.choice("\t\n\r.,;:!?'\"-_/<>=") * draw.randint(1, 6)
        if kind == 3:
            return draw.choice(_CODE)
        if kind == 4:
            return draw.choice(draw.choice(("a", "ab", "the", "in"))) * draw.randint(1, 12)
        return letters()

    texts = ("".join(part() + draw.choice(("", " ")) for _ in range(draw.randint(1, 10))) for _ in range(count))
    return tuple(texts)


def _disagreement(pieces: Pieces, model: models.BPE, texts: int) -> str | None:
    """A text that the two tokenise otherwise; None where there is none among so many."""
    ours = Tokenizer(model)
    ours.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    given = [*random_texts(texts), *(piece.replace(_SPACE, " ") for piece in pieces.joined)]
    both = zip(given, pieces.processor.encode(given), ours.encode_batch_fast(given), strict=True)
    return next((text for text, theirs, mine in both if theirs != mine.ids), None)


def agree(tokenizer: Any, folder: str, *, texts: int = 2000) -> bool:
    """Give a transformers `tokenizer` the merges of the SentencePiece model that lies in `folder`, if one does.

    Returns False, and does nothing, where the vocabulary isn't the model's or not of merges. Raises StageError where
    one of so many random texts comes out as other tokens than SentencePiece's own.
    """
    path = os.path.join(folder, FILE)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not os.path.isfile(path) or backend is None or not isinstance(backend.model, models.BPE):
        return False
    pieces = Pieces(path)
    ids = tokenizer.get_vocab()
    if any(ids.get(piece) != index for piece, index in pieces.vocabulary.items()):
        return False
    model = _model(pieces)
    apart = _disagreement(pieces, model, texts)
    if apart is not None:
        raise StageError(
            f"{path}: no merges give the tokens that SentencePiece makes of {apart!r}; add a tokenizer.json"
        )
    backend.model = model
    _write_spaces_as(tokenizer, pieces)
    return True


def _write_spaces_as(tokenizer: Any, pieces: Pieces) -> None:
    """Give a text its first space where transformers has made a tokenizer without: it does for a LLaVA's folder."""
    if tokenizer("a", add_special_tokens=False)["input_ids"] == pieces.processor.encode("a"):
        return
    from transformers import LlamaTokenizer

    legacy = bool(tokenizer.init_kwargs.get("legacy", False))  # as transformers 5 takes a missing one
    ours = tokenizer.backend_tokenizer
    llamas = LlamaTokenizer(vocab=pieces.vocabulary, merges=[], legacy=legacy).backend_tokenizer
    ours.normalizer, ours.pre_tokenizer, ours.decoder = llamas.normalizer, llamas.pre_tokenizer, llamas.decoder


def fast_tokenizer(path: str, *, legacy: bool) -> Any:
    """A transformers tokenizer of LLaMA's kind from a `tokenizer.model` alone, with LLaVA's `<image>`.

    `legacy`: whether text behind a special token begins with a space of its own, too, as in transformers before 4.31.
    """
    from transformers import LlamaTokenizer

    pieces = Pieces(path)
    tokenizer = LlamaTokenizer(vocab=pieces.vocabulary, merges=[], legacy=legacy)
    agree(tokenizer, os.path.dirname(path))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer
