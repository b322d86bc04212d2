"""The `vig` command: one verb a stage, its options generated from the stage's config.

Values come from the command line, then the environment (VIG_SCORE_MODEL=...), then `--config FILE` (YAML).
Exit status: 0 done, 1 rows failed under --strict, 2 something to mend, told in one line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

import vig_ray
from vig_ray.errors import StageError
from vig_ray.stage import StageConfig
from vig_ray.storage import one_line


@dataclass(frozen=True)
class Verb:
    """One subcommand: its config class and what runs it; both are imported only when it is called."""

    help: str
    load: Callable[[], tuple[type[StageConfig], Callable[[Any], int]]]


def _import() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.dataset.importing import ImportConfig

    def call(config: ImportConfig) -> int:
        from vig_ray.dataset.importing import run
        from vig_ray.progress import RowProgress

        with RowProgress("import", None) as bar:
            report = run(config, progress=bar.update)
        print(report.text())
        return 1 if config.strict and report.failed else 0

    return ImportConfig, call


def _score() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.scoring.config import ScoreConfig

    def call(config: ScoreConfig) -> int:
        from vig_ray.scoring.job import run

        summary = run(config)
        print(summary.text())
        return 1 if config.strict and summary.failed else 0

    return ScoreConfig, call


def _select() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.selection.config import SelectConfig

    def call(config: SelectConfig) -> int:
        from vig_ray.selection.job import run

        print(run(config).text())
        return 0

    return SelectConfig, call


def _train() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.training.config import TrainConfig

    def call(config: TrainConfig) -> int:
        from vig_ray.training.job import run

        print(run(config).text())
        return 0

    return TrainConfig, call


def _export() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.training.export import ExportConfig

    def call(config: ExportConfig) -> int:
        from transformers.utils.logging import disable_progress_bar

        from vig_ray.training.export import run

        disable_progress_bar()
        print(run(config).text())
        return 0

    return ExportConfig, call


def _export_data() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.selection.export import ExportDataConfig

    def call(config: ExportDataConfig) -> int:
        from vig_ray.selection.export import run

        print(run(config).text())
        return 0

    return ExportDataConfig, call


def _top() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.report.top import TopConfig

    def call(config: TopConfig) -> int:
        from vig_ray.report.top import run

        print(run(config).text())
        return 0

    return TopConfig, call


def _report() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.report.job import ReportConfig

    def call(config: ReportConfig) -> int:
        from vig_ray.report.job import run

        print(run(config).text())
        return 0

    return ReportConfig, call


def _compare() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.report.compare import CompareConfig

    def call(config: CompareConfig) -> int:
        from vig_ray.report.compare import run

        print(run(config).text())
        return 0

    return CompareConfig, call


def _inspect() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.report.inspect import InspectConfig

    def call(config: InspectConfig) -> int:
        from vig_ray.report.inspect import run

        print(run(config).text())
        return 0

    return InspectConfig, call


def _assemble() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.model.assemble import AssembleConfig

    def call(config: AssembleConfig) -> int:
        from vig_ray.model.assemble import run

        print(run(config).text())
        return 0

    return AssembleConfig, call


def _demo() -> tuple[type[StageConfig], Callable[[Any], int]]:
    from vig_ray.demo.run import DemoConfig

    def call(config: DemoConfig) -> int:
        from vig_ray.demo.run import run

        print(run(config).text())
        return 0

    return DemoConfig, call


VERBS = {
    "import": Verb("any vision-language dataset to samples/", _import),
    "score": Verb("samples to clean and reference log-probs of every answer token, scores/", _score),
    "select": Verb("scores to the samples and tokens worth training on, selection/", _select),
    "train": Verb("instruction tuning on a selection's active tokens, model/", _train),
    "export": Verb("the model of a training run as a checkpoint, in the hub's or LLaVA's layout", _export),
    "export-data": Verb("a selection in the format of another trainer", _export_data),
    "top": Verb("the samples with the lowest gain, likely mislabelled, or the highest", _top),
    "report": Verb("what scores look like: figures, tables and samples in one HTML file", _report),
    "compare": Verb("two runs over the same samples: do they select the same data?", _compare),
    "inspect": Verb("one sample, its answer coloured by token gain", _inspect),
    "assemble": Verb("language model + vision tower + LLaVA projector to one transformers checkpoint", _assemble),
    "demo": Verb("make a small world whose visual tokens are known, and score it", _demo),
}


def _submit(stage: str) -> Verb:
    """The verb that submits `stage` as a job."""

    def load() -> tuple[type[StageConfig], Callable[[Any], int]]:
        from vig_ray.submission import config_of, run

        return config_of(VERBS[stage].load()[0]), lambda config: run(stage, config)

    return Verb(f"`vig {stage}` as a job of a Ray cluster", load)


SUBMITTED = {stage: _submit(stage) for stage in ("score", "select", "train")}


def _verbs() -> dict[str, Verb]:
    """Those above, and those that other installed packages bring."""
    return VERBS | {found.name: found.load() for found in importlib.metadata.entry_points(group="vig_ray.verbs")}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(default: Any) -> str:
    """A default as it would be written on the command line."""
    if isinstance(default, tuple):
        return ",".join(_shown(value) for value in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def _placed(name: str, field: FieldInfo) -> str:
    """A required option as usage shows it."""
    positional = isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("positional")
    return name.upper() if positional else f"{_flag(name)} ..."


def _metavar(field: FieldInfo) -> str:
    """What the field says itself, the choices of a Literal, or the type in capitals."""
    annotation: Any = field.annotation
    if isinstance(field.json_schema_extra, dict) and "metavar" in field.json_schema_extra:
        return str(field.json_schema_extra["metavar"])
    if get_origin(annotation) is not Literal:
        inner = [a for a in get_args(annotation) if a is not type(None)]
        annotation = inner[0] if inner else annotation
    if get_origin(annotation) is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    return {int: "N", float: "X", str: "TEXT"}.get(annotation, "VALUE")


def _add_options(parser: argparse.ArgumentParser, config: type[StageConfig]) -> None:
    for name, field in config.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        if field.is_required():
            text += " (required)"
        elif field.default_factory is None and field.default is not None and field.annotation is not bool:
            text += f" (default: {_shown(field.default)})"
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("positional"):
            parser.add_argument(name, metavar=name.upper(), help=text.removesuffix(" (required)"))
        elif field.annotation is bool:
            parser.add_argument(_flag(name), dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("repeated"):
            parser.add_argument(
                _flag(name), dest=name, metavar=_metavar(field), action="extend", nargs="+", default=None, help=text
            )
        else:
            parser.add_argument(_flag(name), dest=name, metavar=_metavar(field), default=None, help=text)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of these options; the command line and VIG_<VERB>_<OPTION> variables win",
    )


def _from_yaml(path: str | None) -> Mapping[str, Any]:
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


def _from_environment(verb: str, config: type[StageConfig]) -> dict[str, str]:
    names = {name: f"VIG_{verb}_{name}".upper().replace("-", "_") for name in config.model_fields}
    return {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}


def _explain(error: ValidationError) -> str:
    """pydantic's findings, one line, options spelled as on the command line."""
    told = []
    for finding in error.errors(include_url=False):
        option = _flag(str(finding["loc"][0])) if finding["loc"] else "options"
        if finding["type"] == "missing":
            told.append(f"{option} is required")
        elif finding["type"] == "extra_forbidden":
            told.append(f"{option}: no such option")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            value = f"{option} {finding['input']!r}: " if finding["loc"] else ""  # else it is about several options
            told.append(f"{value}{message[:1].lower()}{message[1:]}" if value else message)
    return "; ".join(told)


def _offer(
    parsers: Any, verb: Verb, words: list[str], given: list[str]
) -> tuple[str, type[StageConfig], Callable[[Any], int]] | None:
    """Add a verb's parser; its name, config class and function if it is the one that was given."""
    child = parsers.add_parser(words[-1], help=verb.help, allow_abbrev=False)
    if given[: len(words)] != words:  # the other verbs' configs stay unimported, so --help is quick
        return None
    config_class, call = verb.load()
    _add_options(child, config_class)
    needed = [_placed(option, field) for option, field in config_class.model_fields.items() if field.is_required()]
    child.usage = " ".join(["vig", *words, *needed, "[options]"])
    child.description = (config_class.__doc__ or "").partition("\n")[0]
    return "-".join(words), config_class, call


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; exits with its status."""
    parser = argparse.ArgumentParser(
        prog="vig", description="Visual information gain of vision-language datasets, on one machine or a Ray cluster."
    )
    parser.add_argument("--version", action="version", version=f"vig-ray {vig_ray.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen_verb: tuple[str, type[StageConfig], Callable[[Any], int]] | None = None
    for name, verb in _verbs().items():
        found = _offer(verbs, verb, [name], given)
        chosen_verb = found or chosen_verb
    submit = verbs.add_parser("submit", help="score, select or train as a job of a Ray cluster", allow_abbrev=False)
    stages = submit.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, verb in SUBMITTED.items():
        found = _offer(stages, verb, ["submit", name], given)
        chosen_verb = found or chosen_verb
    options = vars(parser.parse_args(given))
    told = logging.StreamHandler()
    told.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("vig_ray").addHandler(told)
    logging.getLogger("vig_ray").setLevel(logging.INFO)
    assert chosen_verb is not None
    verb_name, config_class, call = chosen_verb
    try:
        chosen = {
            name: value for name, value in options.items() if value is not None and name in config_class.model_fields
        }
        values = dict(_from_yaml(options["config"])) | _from_environment(verb_name, config_class) | chosen
        status = call(config_class(**values))
    except ValidationError as error:
        sys.exit(_fail(_explain(error)))
    except StageError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:
        sys.exit(_fail(one_line(error)))
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if verb_name in ("score", "train") else ""
        print(f"vig: interrupted{goes_on}", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)


def _fail(message: str) -> int:
    print(f"vig: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
