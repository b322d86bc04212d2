"""The file of keys, in either form: plain keys, one a line; or YAML with the keys' hashes, names and limits."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from serve_app.operator_files import first_finding, parse_yaml, read_text
from vig_ray.errors import StageError

_IS_YAML = re.compile(r"""^[{\s]*["']?(keys|default)["']?\s*:""", re.MULTILINE)
_HASHES_ONLY = "takes the SHA-256 of a key, 64 hex digits in quotes, never the key (printf %s KEY | sha256sum)"


def _moment(value: Any) -> Any:
    """A date as its beginning in UTC."""
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value) if len(value) > 10 else datetime.date.fromisoformat(value)
        except ValueError:
            value = 0
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return datetime.datetime.combine(value, datetime.time(), datetime.UTC)
    if value is not None and (not isinstance(value, datetime.datetime) or value.tzinfo is None):
        raise ValueError("takes a date, or a time and its zone, as 2027-01-31 or 2027-01-31T18:00:00Z")
    return value


class Limits(BaseModel):
    """What a key may ask for; None: without a limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    requests_per_second: float | None = Field(None, gt=0, strict=True)
    tokens_per_second: float | None = Field(None, gt=0, strict=True, description="of prompts, both passes")
    samples_per_day: int | None = Field(None, ge=1, strict=True, description="a day of UTC")
    concurrency: int | None = Field(None, ge=1, strict=True, description="samples under way")
    policy: str | None = Field(None, strict=True, description="the policy of requests that name none")


class Key(Limits):
    """A key: its name and hash, and what it may ask for."""

    name: str = Field(strict=True)
    sha256: str = Field(description="hex")
    expires: Annotated[AwareDatetime | None, BeforeValidator(_moment)] = Field(
        None, description="from this moment on it is refused; a date means its beginning in UTC"
    )

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.@-]{0,63}", name, re.ASCII):
            raise ValueError("takes up to 64 letters, digits, and . @ _ -")
        return name

    @field_validator("sha256", mode="before")
    @classmethod
    def _hash(cls, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise ValueError(_HASHES_ONLY)
        return value.lower()


def hash_of(key: bytes) -> str:
    """SHA-256 of a key's bytes, hex."""
    return hashlib.sha256(key).hexdigest()


def plain_keys(text: str) -> tuple[Key, ...]:
    """The keys of the plain form, one a line; empty lines and lines that begin with # are skipped.

    A key's name is "key-" and the first eight digits of its hash.
    """
    lines = (line.strip() for line in text.splitlines())
    hashes = dict.fromkeys(hash_of(line.encode()) for line in lines if line and not line.startswith("#"))
    return tuple(Key(name=f"key-{each[:8]}", sha256=each) for each in hashes)


def read_keys(path: str, policies: Collection[str]) -> tuple[Key, ...]:
    """The keys in the file at `path`; none only where a YAML file says `keys: []`.

    It is YAML where its name ends in .yaml or .yml, or where a line begins with `keys:` or `default:`. `policies`:
    those there are. Raises StageError, which names file, key and field, and holds no key.
    """
    text = read_text(path, "--keys")
    if path.endswith((".yaml", ".yml")) or _IS_YAML.search(text):
        return _yaml_keys(text, f"--keys {path}", policies)
    keys = plain_keys(text)
    if not keys:
        raise StageError(f"--keys {path}: holds no key")
    return keys


def _yaml_keys(text: str, where: str, policies: Collection[str]) -> tuple[Key, ...]:
    """The keys of the YAML form. Raises StageError."""
    values = parse_yaml(text, where)
    if not isinstance(values, dict) or not isinstance(values.get("keys"), list):
        raise StageError(f"{where}: takes a list under `keys:`, each with name and sha256, and limits under `default:`")
    if values.keys() - {"keys", "default"}:
        raise StageError(f"{where}: takes `keys:` and `default:` and nothing else beside them")
    default = values.get("default") or {}
    try:
        given = Limits.model_validate(default).model_dump(include=set(default))
    except ValidationError as error:
        raise StageError(f"{where}: default: {first_finding(error, Limits)}") from None
    keys = [_key(entry, given, f"{where}: key {number}") for number, entry in enumerate(values["keys"], 1)]
    for number, key in enumerate(keys):
        for other in keys[:number]:
            same = "name" if key.name == other.name else "sha256" if key.sha256 == other.sha256 else None
            if same is not None:
                raise StageError(f"{where}: key {number + 1} {key.name!r}: {same}: key {other.name!r} has the same")
    for key in keys:
        if key.policy is not None and key.policy not in policies:
            there = f"there are {', '.join(policies)}" if policies else "give --policies FILE"
            raise StageError(f"{where}: key {key.name!r}: policy: there is no policy of this name; {there}")
    return tuple(keys)


def _key(entry: Any, default: dict[str, Any], where: str) -> Key:
    if not isinstance(entry, dict):
        raise StageError(f"{where}: takes name and sha256; {_HASHES_ONLY}")
    try:
        return Key.model_validate(default | entry)
    except ValidationError as error:
        raise StageError(f"{where}: {first_finding(error, Key)}") from None
