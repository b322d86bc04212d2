"""VQA accuracy, the soft accuracy of VQAv2 and TextVQA, and how its authors bring answers to one form.

An answer is compared with ten people's. Left one of them out, it is right to min(matches / 3, 1); the accuracy is the
mean over who is left out. Antol et al., "VQA: Visual Question Answering", 2015, https://arxiv.org/abs/1505.00468, and
https://visualqa.org/evaluation.html. What is removed from answers, and in which order, is as the evaluation of
https://visualqa.org has it, to the letter, oddities included; numbers depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(
    r"(?<=\d),+(?=\d)"
)  # visualqa.org's own takes one comma, Pythia's and lmms-eval's several
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the evaluation passes re.UNICODE, which is 32, where re.sub takes the most replacements
_NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"zero": "0"}
_ARTICLES = frozenset({"a", "an", "the"})

# Contracted words that are recognised where one of their apostrophes is missing.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _contractions() -> Iterator[tuple[str, str]]:
    for word in _CONTRACTED.split():
        for place in (match.start() for match in re.finditer("'", word)):
            yield word[:place] + word[place + 1 :], word
    yield "somebody'd", "somebodyd"  # the one that the evaluation turns round


_CONTRACTIONS = dict(_contractions())


def without_marks(text: str) -> str:
    """Punctuation removed where it stands beside a space, or anywhere if a number has a comma in it, and made a space
    elsewhere; full stops removed where no digit follows."""
    everywhere = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _MARKS:
        apart = everywhere or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if apart else " ")
    return _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS)


def plain_words(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, apostrophes put back into contractions."""
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalised(text: str) -> str:
    """An answer of VQAv2 in the form that is compared."""
    return plain_words(without_marks(text.replace("\n", " ").replace("\t", " ").strip()))


def normalised_tokens(text: str) -> str:
    """An answer of TextVQA in the form that is compared: commas and question marks go first, and "'s" is a word, as in
    Pythia's evaluation, https://github.com/facebookresearch/mmf."""
    return normalised(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def accuracy(answer: str, people: Sequence[str]) -> float:
    """The soft accuracy of an answer, all in the form that is compared; `people`: each person's answer."""
    same = [person == answer for person in people]
    matches = sum(same)
    return sum(min(1.0, (matches - left_out) / 3) for left_out in same) / len(same)
