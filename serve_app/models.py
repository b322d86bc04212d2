"""The models and references that a server has, and which of them a request names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from serve_app.errors import RequestError
from serve_app.options import AppConfig
from vig_ray.model.load import Prompts
from vig_ray.model.prompt import Formatter
from vig_ray.scoring.prepare import Pass, make_passes
from vig_ray.scoring.reference import Reference, make_reference


def prompts_for(config: AppConfig, model: str) -> Prompts:
    """What of the options decides the prompts of the model with this name."""
    others = {name: getattr(config, name) for name in Prompts._fields if name != "model"}
    return Prompts(config.models[model], **others)


class Referred(NamedTuple):
    """A reference of a model, and its passes: the clean one and the reference's."""

    reference: Reference
    passes: Sequence[Pass]


class Model:
    """One that is served: what makes its prompts, what scores them (a `Backend`), and its references by name."""

    def __init__(self, name: str, formatter: Formatter, backend: Any, config: AppConfig) -> None:
        self.name, self.formatter, self.backend = name, formatter, backend
        self.tokenizer: Any = formatter.tokenizer
        longest = max((len(token.encode()) for token in self.tokenizer.get_vocab()), default=1)
        self.most_text: int = formatter.max_length * longest
        """Bytes of text beyond which there are more tokens than the model takes, whatever they are."""
        self.references: dict[str, Referred] = {
            each: Referred(
                make_reference(each, formatter=formatter, blur=config.blur),
                make_passes(("clean", each), formatter, blur=config.blur),
            )
            for each in config.reference
        }


def named(choices: Mapping[str, Any], name: str | None, field: str) -> str:
    """`name`, or the first of the choices where it is None. Raises RequestError where it is none of them."""
    if name is None:
        return next(iter(choices))
    if name not in choices:
        raise RequestError(422, "Invalid", f"{field}: this server has {', '.join(choices)}")
    return name
