"""Texts that a tokenizer meets, and many that it hardly ever does: what two tokenizers are compared on."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path


def _by_script() -> list[list[str]]:
    """All characters that Unicode has assigned, those of one script together: by the first word of their names."""
    scripts: dict[str, list[str]] = {}
    for code in range(0x20, sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000 and (name := unicodedata.name(chr(code), "")):
            scripts.setdefault(name.split(maxsplit=1)[0].split("-")[0], []).append(chr(code))
    return list(scripts.values())


def random_strings(count: int, pieces: Sequence[str], seed: int = 0) -> list[str]:
    """Strings of up to eight parts each, always the same for a seed; `pieces` of a vocabulary are among their parts."""
    choose = random.Random(seed)
    scripts = _by_script()
    everything = [character for script in scripts for character in script]
    source = Path(random.__file__).read_text()
    faces = [chr(code) for code in range(0x1F600, 0x1F650)] + [chr(0x2764) + chr(0xFE0F), chr(0x1F468)]

    def code() -> str:
        start = choose.randrange(len(source) - 80)
        return source[start : start + choose.randint(1, 80)]

    def letters() -> str:
        return "".join(choose.choices(choose.choice(scripts), k=choose.randint(1, 10)))

    def faces_joined() -> str:
        return choose.choice(("", "\u200d", "\U0001f3fd")).join(choose.choices(faces, k=choose.randint(1, 5)))

    kinds: list[Callable[[], str]] = [
        lambda: " " * choose.choice((1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64)),
        lambda: choose.choice("\n\t\r\v\f\0\x7f\x85\xa0\u2009\u3000\ufeff") * choose.randint(1, 9),
        lambda: "".join(choose.choices("0123456789.,", k=choose.randint(1, 20))),
        lambda: "".join(choose.choices(everything, k=choose.randint(1, 6))),
        lambda: "".join(choose.choices(pieces, k=choose.randint(1, 8))),
        lambda: choose.choice(pieces) * choose.randint(2, 9),
        code, letters, letters, faces_joined,
    ]  # fmt: skip
    return ["".join(choose.choice(kinds)() for _ in range(choose.randint(1, 8))) for _ in range(count)]
