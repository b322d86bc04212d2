"""Files that an operator writes, keys and policies: what is wrong with one is told in a line that holds no value of it,
since the value may be a key."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vig_ray.errors import StageError
from vig_ray.unique_keys import TwiceError, UniqueKeyLoader


def read_text(path: str, option: str) -> str:
    """The file's text. Raises StageError, which names `option`."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise StageError(f"{option} {path}: can't be read: {why}") from error


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says. Raises StageError, which begins with `where` and names the line."""
    try:
        return yaml.load(text, UniqueKeyLoader)
    except TwiceError as error:
        raise StageError(f"{where}: the mapping at line {error.line} has a name twice") from None
    except yaml.YAMLError as error:
        # PyYAML shows the text around it.
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}" if mark is not None else ""
        raise StageError(f"{where}: not YAML{at}") from None
    except (ValueError, RecursionError):  # a date such as 2026-13-01; brackets by the thousand
        raise StageError(f"{where}: holds a date that there isn't, or is nested too deeply") from None


def first_finding(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong with an entry of a file, as "FIELD: what"."""
    finding = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(map(str, finding["loc"][:1]))
    if finding["type"] == "extra_forbidden":
        # What stands where a name should may be a key.
        named = field if re.fullmatch(r"[a-z_]{1,32}", field) else "a field"
        return f"{named}: no such field; there are {', '.join(model.model_fields)}"
    if finding["type"] == "missing":
        return f"{field}: missing"
    message = finding["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    return f"{field}: {message}" if field else message
