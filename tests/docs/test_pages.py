"""What the docs name is there: options, files, links; and every command says who runs it."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest

from tests.docs.pages import (
    COMMANDS,
    MARKS,
    PAGES,
    ROOT,
    SHOWN,
    anchors,
    blocks,
    code_spans,
    targets,
    verb_calls,
    words,
)
from vig_ray import cli
from vig_ray.selection.strategies import strategies

OTHER_PROGRAMS = {
    "--metrics-export-port", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds",  # ray
    "--editable", "--constraint", "--durations", "--dist",  # pip, pytest
}  # fmt: skip
"""Options that the text names by themselves and that aren't of `vig`."""
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@functools.cache
def options_of(verb: str) -> frozenset[str]:
    """The options that `vig VERB --help` names; a verb that isn't there fails the test."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as end,
    ):
        cli.main([*verb.split(), "--help"])
    assert end.value.code == 0, err.getvalue()
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w-]*", out.getvalue()))


@each_page
def test_every_block_says_what_it_is_and_who_runs_it(page: Path) -> None:
    for block in blocks(page):
        assert block.language in COMMANDS + SHOWN, f"{block.place}: a block of {block.language or 'no language'}"
        if block.language in COMMANDS:
            assert block.mark in MARKS, f"{block.place}: commands without a mark; say one of {', '.join(MARKS)}"
        else:
            assert not block.mark, f"{block.place}: only commands have a mark"


@each_page
def test_every_option_beside_a_verb_is_one_of_it(page: Path) -> None:
    for verb, rest in verb_calls(page):
        given = [word.partition("=")[0] for word in rest if word.startswith("--")]
        unknown = [option for option in given if option not in options_of(verb)]
        assert not unknown, f"{page.name}: vig {verb} has no {', '.join(unknown)}"


@each_page
def test_every_option_named_by_itself_is_one_of_some_verb(page: Path) -> None:
    known = OTHER_PROGRAMS.union(*(options_of(verb) for verb in _every_verb()))
    for span in code_spans(page):
        said = words(span)
        if said[:1] and said[0].startswith("--"):
            unknown = [word for word in said if word.startswith("--") and word.partition("=")[0] not in known]
            assert not unknown, f"{page.name}: `{span}`: no verb has {', '.join(unknown)}"


@functools.cache
def _every_verb() -> tuple[str, ...]:
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        cli.main(["--help"])
    verbs = re.findall(r"^    ([a-z][a-z-]*)\b", out.getvalue(), flags=re.MULTILINE)
    assert len(verbs) > 10
    stages = ("score", "select", "train", "train-text", "eval")
    return (*(verb for verb in verbs if verb != "submit"), *(f"submit {stage}" for stage in stages))


@each_page
def test_links_and_images_lead_somewhere(page: Path) -> None:
    for target in targets(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}: no such heading"


@each_page
def test_targets_of_make_are_in_the_makefile(page: Path) -> None:
    known = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    texts = [block.text for block in blocks(page) if block.language == "bash"] + code_spans(page)
    for text in texts:
        for target in re.findall(r"^make ([a-z][\w-]*)", text, flags=re.MULTILINE):
            assert target in known, f"{page.name}: make {target}"


def test_every_strategy_and_every_verb_has_its_place() -> None:
    chosen = set(code_spans(ROOT / "docs" / "selecting.md"))
    assert not {*strategies()} - chosen, "docs/selecting.md, the table of strategies"
    called = {verb for page in PAGES for verb, _ in verb_calls(page)}
    assert not {*_every_verb()} - called, "no page calls these verbs"


@each_page
def test_files_of_this_project_that_are_named_exist(page: Path) -> None:
    """Paths in inline code that begin with one of the project's folders, and every file in a tree of the house."""
    folders = ("vig_ray/", "serve_app/", "tests/", "jobs/", "benchmarks/", "studies/", "kuberay/", "docs/", ".ci/")
    for span in code_spans(page):
        if span.startswith(folders) and re.fullmatch(r"[\w./-]+", span):
            assert (ROOT / span).exists(), f"{page.name}: `{span}`"
    names = {
        path.name
        for folder in ("vig_ray", "serve_app", "jobs", "tests", "benchmarks", "studies")
        for path in (ROOT / folder).rglob("*")
    }
    spans = " ".join(code_spans(page) + [block.text for block in blocks(page) if page.name == "house.md"])
    for name in re.findall(r"(?<![\w/.])(?:\w+/)*(\w+\.py)\b", spans):
        assert name in names, f"{page.name}: no file is called {name}"
