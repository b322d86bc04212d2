"""The environment of lmms-eval: `vig eval --setup-lmms [DIR]` makes it.

lmms-eval 0.7.3 asks for versions that don't go with ours (wandb 0.25.0, and so protobuf below 7), so it isn't
installed beside vig-ray. The environment lies over that of the Python that makes it: what is installed there (torch,
transformers, ...) is seen from it and not installed twice, and only lmms-eval and what it lacks are its own.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
import sysconfig

from vig_ray.errors import StageError

log = logging.getLogger(__name__)

VERSION = "0.7.3"
HOW = "vig eval --setup-lmms"
REQUIREMENTS = (
    # Itself, what it imports at every start, and what nearly all of its tasks import.
    f"lmms-eval=={VERSION}", "loguru==0.7.3", "tenacity==9.2.1", "python-dotenv==1.2.4", "einops==0.8.2",
    "evaluate==0.4.6",
    "sacrebleu==2.6.0", "portalocker==4.4.2", "tabulate==0.10.0", "colorama==0.4.6", "lxml==6.1.3",
    "pytablewriter==1.2.1", "DataProperty==1.1.1", "mbstrdecoder==1.1.5", "chardet==6.0.0.post1", "pathvalidate==3.3.1",
    "tabledata==1.3.5", "tcolorpy==0.1.7", "typepy==1.3.5", "pytz==2026.6",
    # Its models: an OpenAI-compatible server, and the wrappers of transformers' models.
    "openai==3.57.0", "jiter==0.19.0", "sniffio==1.3.1", "qwen-vl-utils==0.0.14", "decord==0.6.0",
    # The scores of its tasks. latex2sympy2 works with this antlr4 alone, and this is the latest math-verify that does.
    "nltk==3.10.4", "defusedxml==0.7.1", "joblib==1.6.0", "pycocoevalcap==1.2", "pycocotools==2.0.11", "zss==1.2.0",
    "openpyxl==3.1.5", "et_xmlfile==2.0.0", "anls==0.0.2", "Levenshtein==0.27.5", "RapidFuzz==3.14.6",
    "latex2sympy2==1.9.1", "antlr4-python3-runtime==4.7.2", "math-verify==0.1.0",
)  # fmt: skip
"""What is installed, without the requirements of these. Left out of lmms-eval's own: what only uploads results (wandb),
downloads videos (yt-dlp) or decodes them (av), and tools of its developers."""
_EXACT = ("lmms-eval", "latex2sympy2", "antlr4-python3-runtime", "math-verify")
_NO_WHEEL = ("decord",)  # but for Linux on x86_64; only videos need it
_WHICH = """
import importlib.metadata, json, sys
print(json.dumps([name for name in json.loads(sys.argv[1]) if list(importlib.metadata.distributions(name=name))]))
"""
_RECORD = "vig-ray.json"
_LONGEST = 1800  # seconds for pip


def default_directory() -> str:
    """Where the environment lies unless the command says otherwise: in $VIG_RAY_CACHE, by default ~/.cache/vig-ray."""
    named = os.environ.get("VIG_RAY_CACHE")
    cache = named or os.path.join(os.path.expanduser("~"), ".cache", "vig-ray")
    return os.path.join(cache, f"lmms-eval-{VERSION}")


def python_of(directory: str | None) -> str:
    """The Python of a finished environment. Raises StageError where there is none."""
    folder = _absolute(directory)
    command = HOW + ("" if directory is None else f" {directory}")
    record = _record(folder)
    if record is None:
        raise StageError(f"{folder}: lmms-eval's environment isn't there; `{command}` makes it")
    if not _current(record):
        raise StageError(
            f"{folder}: lmms-eval's environment isn't finished, or of another version; `{command}` makes it anew"
        )
    python = _python(folder)
    if not os.access(python, os.X_OK):
        raise StageError(f"{folder}: the Python of lmms-eval's environment is gone; `{command}` makes it anew")
    return python


def set_up(directory: str | None = None) -> str:
    """Make the environment, where it isn't there already; returns what to say of it.

    Raises StageError where the folder holds something else, and where pip fails, with its last words.
    """
    folder = _absolute(directory)
    if _current(_record(folder)):
        return f"{folder}: lmms-eval {VERSION} is there already"
    if _record(folder) is None and os.path.isdir(folder) and os.listdir(folder):
        raise StageError(f"{folder}: holds something else; name another folder, {HOW} DIR")
    try:
        os.makedirs(folder, exist_ok=True)
        _write_record(folder, complete=False)
        _make(folder)
        _write_record(folder, complete=True)
    except OSError as error:
        raise StageError(f"{folder}: lmms-eval's environment can't be made there: {error}") from error
    return f"{folder}: lmms-eval {VERSION} is ready"


def _make(folder: str) -> None:
    has_pip = importlib.util.find_spec("pip") is not None
    options = ["--clear", *(["--without-pip"] if has_pip else [])]
    _run([sys.executable, "-m", "venv", *options, folder], "no virtual environment can be made")
    # --clear takes the record away, too.
    _write_record(folder, complete=False)
    within = f"import sysconfig; print(sysconfig.get_path({'purelib'!r}))"
    own = _run([_python(folder), "-c", within], "its Python doesn't start").strip()
    with open(os.path.join(own, "below.pth"), "w", encoding="utf-8") as file:
        for site in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]):
            file.write(f"import site; site.addsitedir({site!r})\n")
    wanted = _missing(_python(folder))
    log.info("%s: installing lmms-eval %s and %d packages that it needs", folder, VERSION, len(wanted) - 1)
    pip = [_python(folder), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-input"]
    _run([*pip, *wanted], "pip could not install lmms-eval")


def _missing(python: str) -> list[str]:
    """The requirements that what lies below this Python doesn't fulfil already."""
    # Asked of it, not of this process, to whose path Ray and others add packages of their own.
    names = json.dumps([requirement.partition("==")[0] for requirement in REQUIREMENTS])
    there = set(json.loads(_run([python, "-c", _WHICH, names], "its Python doesn't start")))
    found = []
    for requirement in REQUIREMENTS:
        name = requirement.partition("==")[0]
        has_wheel = name not in _NO_WHEEL or (sys.platform, platform.machine()) == ("linux", "x86_64")
        if has_wheel and (name in _EXACT or name not in there):
            found.append(requirement)
    return found


def _run(command: list[str], what: str) -> str:
    """What a command prints. Raises StageError with its last words where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise StageError(f"{what}: it took longer than {_LONGEST // 60} minutes") from error
    if done.returncode:
        lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR:", "Error:"))]
        raise StageError(f"{what}: {(errors or lines or ['it says nothing'])[-1]}")
    return done.stdout


def _absolute(directory: str | None) -> str:
    return os.path.abspath(os.path.expanduser(directory or default_directory()))


def _python(folder: str) -> str:
    return os.path.join(folder, "bin", "python")


def _current(record: dict[str, object] | None) -> bool:
    """Whether a record is that of a finished environment as this version makes it."""
    return record is not None and record.get("complete") is True and record.get("requirements") == list(REQUIREMENTS)


def _record(folder: str) -> dict[str, object] | None:
    """What is written of an environment, {} where that can't be read; None where nothing is."""
    try:
        with open(os.path.join(folder, _RECORD), encoding="utf-8") as file:
            record = json.load(file)
    except OSError:
        return None
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(folder: str, *, complete: bool) -> None:
    with open(os.path.join(folder, _RECORD), "w", encoding="utf-8") as file:
        made = {"complete": complete, "requirements": REQUIREMENTS, "python": platform.python_version()}
        json.dump(made | {"over": sys.prefix}, file, indent=2)
