"""README.md, CONTRIBUTING.md and docs/*.md as their readers' commands, options and links.

Every fenced block says in its info string what it is, and a block of commands also who runs it: ```bash run

    run       the tests, in the order of the page, in a folder that holds what the page names
    cluster   the same, in `make test-cluster`, since it starts a server or a Ray cluster
    make      CI: targets of the Makefile
    install   nobody here: it changes the machine
    long      nobody here: it takes minutes or hours
    gpu       nobody here: it needs a GPU, or a checkpoint of billions of weights
    cloud     nobody here: it needs an account, or a cluster of several machines
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKS = ("run", "cluster", "make", "install", "long", "gpu", "cloud")
COMMANDS = ("bash", "python")  # languages that need a mark
SHOWN = ("text", "json", "yaml")  # languages of what a page only shows


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and mark ("" where it has none), its text and the line it begins at."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _inline(page: Path) -> Iterator[Token]:
    for token in _tokens(page):
        yield from token.children or ()


def blocks(page: Path) -> list[Block]:
    """Its fenced and indented blocks, in order."""
    found = []
    for token in _tokens(page):
        if token.type in ("fence", "code_block"):
            language, _, mark = token.info.strip().partition(" ")
            assert token.map is not None
            found.append(Block(page, token.map[0] + 1, language, mark.strip(), token.content))
    return found


def code_spans(page: Path) -> list[str]:
    """Its inline code."""
    return [token.content for token in _inline(page) if token.type == "code_inline"]


def targets(page: Path) -> list[str]:
    """Where its links and images lead."""
    found = [token.attrGet("href") or token.attrGet("src") for token in _inline(page)]
    return [str(target) for target in found if target]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives its headings."""
    parsed = _tokens(page)
    titles = [after.content for token, after in itertools.pairwise(parsed) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> list[str]:
    """The lines of a bash block, those that end in a backslash joined with the next; without comments and blanks."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def words(command: str) -> list[str]:
    """A command's words as the shell splits them, without a comment at its end; [] where it isn't complete."""
    try:
        return shlex.split(command, comments=True)
    except ValueError:  # a quote that ends in a later line
        return []


def verb_calls(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every `vig VERB ...` of its bash blocks and its inline code: (verb, the words after it)."""
    texts = [line for block in blocks(page) if block.language == "bash" for line in commands(block.text)]
    for text in [*texts, *code_spans(page)]:
        for part in re.split(r"[;&|]+", text):
            said = words(part)
            if said[:1] and said[0].rpartition("/")[2] == "vig" and len(said) > 1 and said[1].islower():
                length = 2 if said[1] == "submit" and len(said) > 2 else 1
                yield " ".join(said[1 : 1 + length]), said[1 + length :]
