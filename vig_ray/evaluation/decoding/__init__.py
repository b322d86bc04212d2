"""Decoding methods that need no training: how the next token is chosen, by name and options.

    vcd,alpha=1,beta=0.1,steps=500     contrast with a noised image
    pai,alpha=0.2,gamma=1.1            more attention to the image, and contrast with the text alone
    var,sinks=1415+2533,p=0.6          attention on sinks handed on to the rest of the image

A method may run a prompt as several lines that go on with the same token, change attention behind the image, or both.
A prompt without an image is written as without a method.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vig_ray.errors import StageError
from vig_ray.evaluation.rows import Line, line_of
from vig_ray.model.prompt import Formatter, Prompt

METHODS = {"vcd": "vcd:Vcd", "pai": "pai:Pai", "var": "var:Var"}
"""From a method's name to MODULE:NAME of its class; a module is imported when its method is asked for."""
_NO_METHOD = ("", "plain")


@dataclass(frozen=True)
class Decoding:
    """No method: the model's own logits. Methods are made of this one; their fields are their options.

    `acts`: it changes attention, for which a prompt must begin with its images and go on behind them. `lines`: as how
    many lines a prompt with images is run.
    """

    name: ClassVar[str] = "plain"
    acts: ClassVar[bool] = False

    @property
    def lines(self) -> int:
        """See the class."""
        return 1

    def lines_of(self, prompt: Prompt, formatter: Formatter) -> tuple[Line, ...]:  # noqa: ARG002
        """The lines that a prompt with images is run as. Raises PromptError where it can't be."""
        return (line_of(prompt),)

    def combine(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """From the lines' logits, [N, V] each, to those that the next token is chosen by, [N, V]; -inf for a token that
        isn't to be chosen."""
        return logits[0]

    @contextmanager
    def acting(self, model: Any) -> Iterator[Acting | None]:  # noqa: ARG002
        """Meanwhile `model` attends as the method has it."""
        yield None

    def check(self, model: Any) -> None:
        """Raise StageError where `model` can't be run so."""

    @property
    def spec(self) -> str:
        """All of it, as the command line takes it."""
        options = [f"{field.name}={_spelled(getattr(self, field.name))}" for field in dataclasses.fields(self)]
        return ",".join([self.name, *options])

    @classmethod
    def of(cls, spec: str | None) -> Decoding:
        """The method that "NAME,OPTION=VALUE,..." names; none for None or "plain". Raises StageError."""
        name, *pairs = [part.strip() for part in (spec or "").split(",")]
        if name in _NO_METHOD and not pairs:
            return Decoding()
        if name not in METHODS:
            hint = _hint(name, METHODS)
            raise StageError(f"--decoding {spec}: no such method{hint}; there are {', '.join(METHODS)}, and plain")
        module, _, made = METHODS[name].partition(":")
        method: type[Decoding] = getattr(importlib.import_module(f"{__name__}.{module}"), made)
        fields = {field.name: field for field in dataclasses.fields(method)}
        given: dict[str, Any] = {}
        for pair in pairs:
            option, equals, text = (part.strip() for part in pair.partition("="))
            if not equals or option not in fields:
                hint = _hint(option, fields)
                raise StageError(f"--decoding {spec}: {name} takes {', '.join(fields)}, not {pair!r}{hint}")
            if option in given:
                raise StageError(f"--decoding {spec}: {option} is given twice")
            given[option] = _read(fields[option].metadata["read"], text, f"--decoding {spec}: {option}")
        try:
            return method(**given)
        except ValueError as error:
            raise StageError(f"--decoding {spec}: {error}") from error


class Acting:
    """What a method does while a batch is computed: it is told which places hold image features, bool [R, L], and which
    rows are left whenever that changes."""

    def begins(self, image_RL: torch.Tensor, after_RL: torch.Tensor) -> None:
        """The prefixes are computed; from here on the rows are written on. `after_RL`: which places are behind the
        images, and no padding."""

    def rows(self, rows_R: torch.Tensor) -> None:
        """These rows are left, in this order."""


def number(least: float, most: float | None = None, *, whole: bool = False) -> dict[str, Any]:
    """An option's metadata: it is a number from `least`, up to `most`."""

    def read(text: str) -> float:
        value = int(text) if whole else float(text)
        if not least <= value <= (float("inf") if most is None else most):
            raise ValueError
        return value

    limits = f"from {least:g}" if most is None else f"from {least:g} to {most:g}"
    return {"read": (read, f"takes a {'whole ' if whole else ''}number {limits}")}


def _read(reader: tuple[Callable[[str], Any], str], text: str, what: str) -> Any:
    read, told = reader
    try:
        return read(text)
    except ValueError:
        raise StageError(f"{what} {told}, not {text!r}") from None


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
