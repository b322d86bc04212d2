"""`main` in this very process, many times over: nothing of one call is left for the next, wrong words are one line."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter

import pytest

from vig_ray.cli import main
from vig_ray.scoring.summary import ScoreSummary


def status(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "VERB"),
        (("scor",), "'scor'"),
        (("score", "--windw", "3"), "--windw 3: no such option; vig score --help"),
        (("score", "--data"), "--data: expected at least one argument"),
        (("score", "--window", "0", "--data", "d", "--model", "m", "--out", "o"), "--window '0'"),
        (("submit", "demo"), "'demo'"),
        (("submit", "score", "--fllow"), "--fllow: no such option; vig submit score --help"),
        (("inspect", "--scores", "s"), "KEY"),
        (("train", "--model", "m", "--samples", "s", "--out", "o", "--watch", ""), "--watch ''"),
    ],
)
def test_wrong_words_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert status(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("vig: ")
    assert told in line


def test_nothing_of_a_call_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("vig_ray")
    before = list(logger.handlers), logger.level
    for _ in range(3):
        assert status("top", "--scores", "nowhere") == 2
        assert capsys.readouterr().err.splitlines() == [
            "vig: nowhere: no scores here; --scores takes what `vig score --out` wrote"
        ]
    assert (list(logger.handlers), logger.level) == before


def test_help_loads_nothing_that_takes_long() -> None:
    code = (
        "import sys; from vig_ray.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'ray', 'transformers', 'pyarrow', 'numpy', 'vllm'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "any vision-language dataset" in done.stdout


@pytest.mark.parametrize(
    ("failed", "incomplete", "words", "expected"),
    [(0, 0, ["--strict"], 0), (1, 0, ["--strict"], 1), (0, 1, ["--strict"], 1), (1, 1, [], 0)],
)
def test_strict_is_about_every_pass_of_a_row(
    failed: int, incomplete: int, words: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ScoreSummary("scores", read=3, failed=failed, incomplete=+Counter(Blind=incomplete))
    monkeypatch.setattr("vig_ray.scoring.job.run", lambda _: told)
    assert status("score", "--data", "d", "--model", "m", "--out", "o", *words) == expected


def test_help_says_which_words_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("compare", "--help") == 0
    printed = capsys.readouterr().out
    assert "usage: vig compare A [B] [options]" in printed
    assert "(default: )" not in printed
