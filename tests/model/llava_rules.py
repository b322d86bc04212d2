"""LLaVA-1.5's training prompts by its own procedure, on SentencePiece alone: what a formatter is held against.

Nothing of the package is used here. `trained` goes the way that LLaVA's trainer goes with one sample: marks moved to
the front of their turn, one text of all turns, token ids, labels kept by counting round by round, the sample's labels
dropped where the counts don't add up, padding taken out, the image put in, and the whole cut at the limit.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

IMAGE = -200
UNK, BOS, EOS = 0, 1, 2
SPECIALS = {"<unk>": UNK, "<s>": BOS, "</s>": EOS}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
NAMES = {"human": "USER", "gpt": "ASSISTANT"}
MARK = "<image>"
ANSWERS = " ASSISTANT: "


class Crashes(Exception):  # noqa: N818 - what LLaVA's code does
    """LLaVA's code raises on this conversation."""


@dataclass(frozen=True)
class Outcome:
    """What LLaVA's model gets and learns of one sample.

    `ids`: with each image as `IMAGE`, once for each of its features. `trained`: the positions in `ids` that have a
    label. `drops`: none has. `mismatch`: because the rounds' lengths don't add up to the sample's.
    """

    ids: list[int]
    trained: list[int]
    mismatch: bool = False

    @property
    def drops(self) -> bool:
        return not self.trained


class SlowTokens:
    """Text to ids as the slow Llama tokenizer does it with a SentencePiece model.

    The special tokens are cut out of the text. With `legacy`, SentencePiece puts a space in front of each piece
    between them. Without, only the text's start gets one, and none where the text starts with a special token.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, *, legacy: bool) -> None:
        self._legacy = legacy
        self._processor = processor if legacy else _without_prefix(processor.serialized_model_proto())

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`, after one BOS."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Crashes("half a surrogate pair") from error
        ids = [BOS]
        if text and not self._legacy and not text.startswith(tuple(SPECIALS)):
            text = f" {text}"
        for piece in re.split("(<unk>|</?s>)", text):
            if piece in SPECIALS:
                ids.append(SPECIALS[piece])
            elif piece:
                ids += self._processor.encode(piece)
        return ids

    def around_images(self, text: str) -> list[int]:
        """The ids of `text`, each part around its marks by itself, `IMAGE` for the marks, and one BOS."""
        ids = [BOS]
        for index, part in enumerate(text.split(MARK)):
            ids += [IMAGE] * (index > 0) + self(part)[1:]
        return ids


@functools.lru_cache(maxsize=4)
def _without_prefix(model: bytes) -> sentencepiece.SentencePieceProcessor:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def trained(
    conversation: Sequence[tuple[str, str]],
    images: int,
    processor: sentencepiece.SentencePieceProcessor,
    *,
    legacy: bool,
    max_length: int = 2048,
    num_image_tokens: int = 576,
) -> Outcome:
    """What LLaVA's code trains of `conversation`; raises `Crashes` where it raises."""
    if images > 1:
        raise Crashes("a sample has one image")
    tokens = SlowTokens(processor, legacy=legacy)
    text = prompt(conversation, image=images == 1)
    # A sample without an image is cut before its labels are made, one with an image after.
    encode = tokens.around_images if images else tokens
    ids = encode(text) if images else encode(text)[:max_length]
    labelled, counted = _labels(text, ids, encode, legacy)
    # Padding is <unk>, so an <unk> of the text isn't counted, and isn't in what the model sees.
    mismatch = counted < max_length and counted != len(ids) - ids.count(UNK)
    seen = [
        (token, label and not mismatch)
        for token, label in zip(ids[:max_length], labelled[:max_length], strict=True)
        if token != UNK
    ]
    if sum(token == IMAGE for token, _ in seen) > 1:
        raise Crashes("two marks, one image")
    filled: list[tuple[int, bool]] = []
    for token, label in seen:
        filled += [(IMAGE, False)] * num_image_tokens if token == IMAGE else [(token, label)]
    del filled[max_length:]
    return Outcome(
        [token for token, _ in filled], [place for place, (_, label) in enumerate(filled) if label], mismatch
    )


def prompt(conversation: Sequence[tuple[str, str]], *, image: bool) -> str:
    """The text of all turns."""
    try:
        turns = [(NAMES[role], _mark_first(text) if image else text) for role, text in conversation]
        if turns[0][0] != "USER":
            turns = turns[1:]
    except (KeyError, IndexError) as error:
        raise Crashes("an unknown role, or no turn") from error
    said = f"{SYSTEM} "
    for index, (name, text) in enumerate(turns):
        expected, end = ("ASSISTANT", "</s>") if index % 2 else ("USER", " ")
        if name != expected:
            raise Crashes("turns don't alternate")
        said += f"{name}: {text}{end}" if text else f"{name}:"
    return said


def _mark_first(text: str) -> str:
    return f"{MARK}\n{text.replace(MARK, '').strip()}".strip() if MARK in text else text


def _labels(text: str, ids: list[int], encode: Callable[[str], list[int]], legacy: bool) -> tuple[list[bool], int]:
    """Which of `ids` keep a label, and how many ids the rounds have by themselves.

    A round is what ends in "</s>". Its own BOS stands for the "</s>" before it or, in the first, is the sample's.
    What comes before its answer loses the labels, less the BOS and the last token, which is the space after
    "ASSISTANT:" where it is a token of its own.
    """
    labelled = [True] * len(ids)
    labelled[0] = False
    counted = 1
    for index, part in enumerate(text.split("</s>")):
        asked, *answers = part.split(ANSWERS)
        if not part or len(answers) != 1:
            break
        # By itself a round has a prefix that it lacks after a "</s>", taken to be one token.
        more = int(index > 0 and not legacy)
        length = len(encode(part)) - more
        before = len(encode(asked + ANSWERS)) - 2 - more
        for place in range(counted, min(counted + before, len(ids))):
            labelled[place] = False
        counted += length
    labelled[counted:] = [False] * len(labelled[counted:])
    return labelled, counted


def small_model(path: str | Path, *, vocabulary: int = 1000) -> Path:
    """A SentencePiece model with LLaMA's settings, learned in a second; the file is `path`/tokenizer.model.

    As in LLaMA's: bytes for unknown characters, runs of spaces are pieces but the last to be merged, and "USER" is
    one piece where no space precedes it and two where one does.
    """
    file = Path(path) / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_prefix=str(file.with_suffix("")),
        model_type="bpe",
        vocab_size=vocabulary,
        character_coverage=0.9995,
        max_sentencepiece_length=16,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        unk_surface=" \u2047 ",
        num_threads=1,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    for piece in proto.pieces:
        if len(piece.piece) > 1 and not piece.piece.strip("▁"):
            piece.score = -1e9
    file.write_bytes(proto.SerializeToString())
    return file


def corpus(lines: int = 1500, seed: int = 0) -> Iterator[str]:
    """Lines of words of several scripts, numbers, and what looks like code, always the same."""
    choose = random.Random(seed)

    def some(words: str, least: int, most: int) -> str:
        return " ".join(choose.choice(words.split()) for _ in range(choose.randint(least, most)))

    for line in range(lines):
        yield some(ENGLISH, 6, 14).capitalize() + choose.choice(".?!")
        yield some(EUROPEAN, 3, 8) + choose.choice((".", "?", ' "', "..."))
        if line % 3 == 0:
            yield some(OTHER, 2, 6)
            yield "".join(choose.choice(CHINESE) for _ in range(8))
        if line % 4 == 0:
            yield f"the US and the ER of {choose.randint(0, 3000)},{choose.randint(0, 99)}: US, US (US) US"
        if line % 5 == 0:
            name = choose.choice(("USER", "USER", "ASSISTANT"))
            yield f"env={name};({name})"
        if line % 6 == 0:
            tag = choose.choice(("div", "p", "span", "text"))
            yield f"<{tag}>{some(CODE, 1, 3)}</{tag}> <{tag}>"
        if line % 2 == 0:
            indent = " " * choose.choice((2, 4, 8, 16))
            yield f"{indent}if {some(CODE, 1, 1)}({some(CODE, 1, 1)}) == {choose.randint(0, 9)}: # {some(CODE, 1, 3)}"
            yield f"{indent}\treturn {some(CODE, 1, 1)}[{choose.randint(0, 99)}] + '{some(CODE, 1, 1)}'{indent}"


ENGLISH = (
    "a an the is are was what which where who how why of in on at to from with and or not there here this that it he "
    "she they his her their man woman child people dog cat bird horse red green blue white black yellow left right "
    "behind front under over near image picture photo shows standing sitting holding wearing table chair street "
    "window building tree water sky two three several many large small answer question user assistant curious polite "
    "helpful detailed chat between artificial intelligence gives please describe count read text sign color kind"
)
EUROPEAN = (
    "le la les un une est dans avec chien forêt été où français der die das und nicht für Straße schön grün el niño "
    "señor qué está año собака кошка это что улица дом красный и на в σκύλος γάτα είναι το και"
)
OTHER = "שלום כלב זה על كلب هذا في بيت ما 개 고양이 사진 무엇 いぬ ねこ です なに कुत्ता यह क्या"
CHINESE = "的一是不了人我在有他这中大来上个国到说们图片里什么颜色狗猫"
CODE = "self index value count name result data print range len text image model items key def class None True"
