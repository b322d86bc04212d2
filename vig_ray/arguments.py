"""The options of a verb, made from its config class: on the command line, in a YAML file and in the environment.

Values come from the command line, then the environment (VIG_SCORE_MODEL=...), then `--config FILE`.

Of the libraries that do this, none keeps the spellings that README names: pydantic-settings 2.16 makes `p` the option
-p, takes one NAME=VALUE after --vllm where several may stand, and wants JSON in VIG_SELECT_P; jsonargparse 4.53 has
neither --rows-per-file nor --no-strict, and cyclopts 5.5 has --vllm.NAME. So these few lines build argparse's options.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from vig_ray.errors import StageError

if TYPE_CHECKING:
    from vig_ray.stage import StageConfig

_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where to read on."""

    def error(self, message: str) -> NoReturn:
        """Raise StageError instead of printing the whole usage."""
        raise StageError(f"{message.removeprefix('argument ')}; {self.prog} --help shows what there is")


def add_options(parser: argparse.ArgumentParser, config_class: type[StageConfig]) -> None:
    """Give `parser` an option for every field of the config, --config, a usage line and a description."""
    fields = _as_shown(config_class)
    for name, field in fields:
        if extra_of(field).get("positional"):
            many = None if field.is_required() else "?"
            parser.add_argument(name, metavar=name.upper(), nargs=many, help=_help(field))
        elif field.annotation is bool:
            parser.add_argument(
                flag_of(name), dest=name, action=argparse.BooleanOptionalAction, default=None, help=_help(field)
            )
        else:
            several: dict[str, Any] = {"action": "extend", "nargs": "+"} if extra_of(field).get("repeated") else {}
            parser.add_argument(
                flag_of(name), dest=name, metavar=_metavar(field), default=None, help=_help(field), **several
            )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of these options; the command line and VIG_<VERB>_<OPTION> variables win",
    )
    required = [
        _in_usage(name, field) for name, field in fields if field.is_required() or extra_of(field).get("positional")
    ]
    parser.usage = " ".join([parser.prog, *required, "[options]"])
    parser.description = (config_class.__doc__ or "").partition("\n")[0]


def _as_shown(config_class: type[StageConfig]) -> list[tuple[str, FieldInfo]]:
    """A config's fields in the order in which --help has them."""
    names = list(config_class.model_fields)
    for behind, own in config_class.shown_behind.items():
        names = [name for name in names if name not in own]
        place = names.index(behind) + 1 if behind else 0
        names[place:place] = own
    return [(name, config_class.model_fields[name]) for name in names]


def read_config(verb: Sequence[str], config_class: type[StageConfig], given: Mapping[str, Any]) -> StageConfig:
    """The config of a verb (its words) from what argparse was given, the environment and the file of --config.

    Raises StageError, with every wrong option spelled as on the command line.
    """
    chosen = {name: given[name] for name in config_class.model_fields if given[name] is not None}
    try:
        return config_class(**_from_yaml(given["config"]) | _from_environment(verb, config_class) | chosen)
    except ValidationError as error:
        raise StageError("; ".join(explained(error, flag_of))) from error


def flag_of(name: str) -> str:
    """An option as the command line has it."""
    return "--" + name.replace("_", "-")


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """`metavar`, `positional` and `repeated` as the field has them, or the type of its values."""
    if isinstance(field.json_schema_extra, dict):
        return field.json_schema_extra
    for annotation in get_args(field.annotation):  # WorkerRange | None keeps them at WorkerRange
        if get_origin(annotation) is Annotated:
            for part in get_args(annotation):
                if isinstance(part, FieldInfo) and isinstance(part.json_schema_extra, dict):
                    return part.json_schema_extra
    return {}


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.is_required():
        return text if extra_of(field).get("positional") else f"{text} (required)"
    if field.default_factory is None and field.default not in (None, ()) and field.annotation is not bool:
        return f"{text} (default: {_as_written(field.default)})"
    return text


def _as_written(default: Any) -> str:
    """A default as it would be written on the command line."""
    if isinstance(default, tuple):
        return ",".join(_as_written(value) for value in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def _metavar(field: FieldInfo) -> str:
    """What stands for the value: as the field says, the choices of a Literal, or the type in capitals."""
    if "metavar" in extra_of(field):
        return str(extra_of(field)["metavar"])
    annotation: Any = field.annotation
    if get_origin(annotation) is not Literal:
        annotation = next((part for part in get_args(annotation) if part is not type(None)), annotation)
    if get_origin(annotation) is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    return _METAVARS.get(annotation, "VALUE")


def _in_usage(name: str, field: FieldInfo) -> str:
    if not extra_of(field).get("positional"):
        return f"{flag_of(name)} ..."
    return name.upper() if field.is_required() else f"[{name.upper()}]"


def _from_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StageError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise StageError(f"--config {path}: needs lines of 'option: value'")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _from_environment(verb: Sequence[str], config_class: type[StageConfig]) -> dict[str, str]:
    variables = {name: "_".join(["VIG", *verb, name]).upper().replace("-", "_") for name in config_class.model_fields}
    return {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}


def explained(error: ValidationError, spelled: Callable[[str], str]) -> Iterator[str]:
    """What pydantic found wrong, one text an option. `spelled`: an option's name as its user writes it."""
    for problem in error.errors(include_url=False):
        option = spelled(str(problem["loc"][0])) if problem["loc"] else None  # None: it is about several options
        message = problem["msg"].removeprefix("Value error, ")
        if option is None:
            yield message
        elif problem["type"] == "missing":
            yield f"{option} is required"
        elif problem["type"] == "extra_forbidden":
            yield f"{option}: no such option"
        else:
            yield f"{option} {_given(problem['input'])}: {message[:1].lower()}{message[1:]}"


def _given(value: Any) -> str:
    """A value as a person has given it, in quotes; several with commas between them."""
    return ", ".join(map(repr, value)) if isinstance(value, (list, tuple)) and value else repr(value)
