"""The `vig` command: a table of verbs, whose options come from the config of each.

Exit status: 0 done, 1 rows failed under --strict, 2 something to mend, told in one line; 130 interrupted.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import vig_ray
from vig_ray.arguments import Parser, add_options, read_config
from vig_ray.errors import StageError
from vig_ray.terminal import make_printable

if TYPE_CHECKING:
    from vig_ray.stage import StageConfig


@dataclass(frozen=True)
class Instead:
    """An option that does something else than its verb, and needs none of the verb's others. `run`: MODULE:NAME, called
    with what follows the option, None where nothing does; returns what is printed."""

    option: str
    metavar: str
    help: str
    run: str


@dataclass(frozen=True)
class Verb:
    """One subcommand. `config` and `run`: MODULE:NAME, imported only when the verb is called.

    `run` takes the config and returns what is printed, an object with `text()` and, where the config has `strict`,
    `failed`, and `incomplete` where rows may fail in part; or an exit status. `resumes`: the same command goes on where
    an interrupted one stopped. `instead`: an option that does something else.
    """

    help: str
    config: str
    run: str
    resumes: bool = False
    instead: Instead | None = None

    def load(self) -> tuple[type[StageConfig], Callable[[Any], Any]]:
        """The config class and the function."""
        return _named(self.config), _named(self.run)


@dataclass(frozen=True)
class Submitted(Verb):
    """`vig submit STAGE`: what `run` does is told the stage's name first."""

    stage: str = ""

    def load(self) -> tuple[type[StageConfig], Callable[[Any], Any]]:
        """The config class, made from the stage's own, and the function."""
        make_config, run = _named(self.config), _named(self.run)
        return make_config(VERBS[self.stage].load()[0]), partial(run, self.stage)


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


VERBS = {
    "import": Verb(
        "any vision-language dataset to samples/",
        "vig_ray.evaluation.importing:ImportTaskConfig",
        "vig_ray.evaluation.importing:run_with_progress",
    ),
    "score": Verb(
        "samples to clean and reference log-probs of every answer token, scores/",
        "vig_ray.scoring.config:ScoreConfig",
        "vig_ray.scoring.job:run",
        resumes=True,
    ),
    "measure": Verb(
        "what some strategies of select need beside the scores: attention, EL2N, CLIP; measures/",
        "vig_ray.measuring.config:MeasureConfig",
        "vig_ray.measuring.job:run",
        resumes=True,
    ),
    "audit": Verb(
        "whether gains are a signal: on which sources does the model see what is asked?",
        "vig_ray.audit.config:AuditConfig",
        "vig_ray.audit.job:run",
    ),
    "select": Verb(
        "scores to the samples and tokens worth training on, selection/",
        "vig_ray.selection.config:SelectConfig",
        "vig_ray.selection.job:run",
    ),
    "train": Verb(
        "alignment, or instruction tuning on a selection's active tokens, model/",
        "vig_ray.training.config:TrainConfig",
        "vig_ray.training.job:run",
        resumes=True,
    ),
    "train-text": Verb(
        "a language model on answer texts alone, the reference that PRIOR weighs tokens by, model/",
        "vig_ray.training.text_config:TrainTextConfig",
        "vig_ray.training.text_job:run",
        resumes=True,
    ),
    "eval": Verb(
        "models on benchmarks and on data of one's own: a table with intervals, evaluation/",
        "vig_ray.evaluation.config:EvalConfig",
        "vig_ray.evaluation.job:run",
        resumes=True,
        instead=Instead(
            "--setup-lmms",
            "DIR",
            "make the environment that tasks lmms:... run in, and do nothing else; by default in the user's cache",
            "vig_ray.evaluation.lmms.environment:set_up",
        ),
    ),
    "study": Verb(
        "a grid of the stages above, from a file: which selection is better, and how sure that is; study.json",
        "vig_ray.study.config:StudyConfig",
        "vig_ray.study.job:run",
        resumes=True,
    ),
    "export": Verb(
        "the model of a training run as a checkpoint, in the hub's or LLaVA's layout",
        "vig_ray.training.export:ExportConfig",
        "vig_ray.training.export:run_without_bars",
    ),
    "export-data": Verb(
        "a selection in the format of another trainer",
        "vig_ray.selection.export:ExportDataConfig",
        "vig_ray.selection.export:run",
    ),
    "push": Verb(
        "scores and selection, or a trained model, to a repository of the Hugging Face hub",
        "vig_ray.push.job:PushConfig",
        "vig_ray.push.job:run",
    ),
    "top": Verb(
        "the samples with the lowest gain, likely mislabelled, or the highest",
        "vig_ray.report.top:TopConfig",
        "vig_ray.report.top:run",
    ),
    "report": Verb(
        "what scores, an evaluation or a study look like: figures, tables and samples in one HTML file",
        "vig_ray.report.job:ReportConfig",
        "vig_ray.report.job:run",
    ),
    "compare": Verb(
        "two runs over the same samples: do they select the same data?",
        "vig_ray.report.compare:CompareConfig",
        "vig_ray.report.compare:run",
    ),
    "inspect": Verb(
        "one sample, its answer coloured by token gain",
        "vig_ray.report.inspect:InspectConfig",
        "vig_ray.report.inspect:run",
    ),
    "assemble": Verb(
        "language model + vision tower + LLaVA projector to one transformers checkpoint",
        "vig_ray.model.assemble:AssembleConfig",
        "vig_ray.model.assemble:run",
    ),
    "demo": Verb(
        "make a small world whose visual tokens are known, and score it",
        "vig_ray.demo.run:DemoConfig",
        "vig_ray.demo.run:run",
    ),
}
SUBMITTED = {
    stage: Submitted(
        f"`vig {stage}` as a job of a Ray cluster",
        "vig_ray.submission:config_of",
        "vig_ray.submission:run",
        stage=stage,
    )
    for stage in ("score", "measure", "select", "train", "train-text", "eval")
} | {
    "study": Submitted(
        "`vig study` as a job of a Ray cluster; the file goes along",
        "vig_ray.submission:config_of",
        "vig_ray.study.submit:run",
        stage="study",
    )
}


def _verbs() -> dict[str, Verb]:
    """Those above, and those that other installed packages bring."""
    brought = importlib.metadata.entry_points(group="vig_ray.verbs")
    return VERBS | {entry_point.name: entry_point.load() for entry_point in brought}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb, with the program's arguments by default; exits with its status."""
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    """Run one verb; its exit status."""
    make_printable((sys.stdout, sys.stderr))
    goes_on = ""
    try:
        words, verb, config_class, run, given = _parse(arguments)
        if verb.instead and given["instead"] is not None:
            with _log_on_stderr():
                print(_named(verb.instead.run)(given["instead"] or None))
            return 0
        config = read_config(words, config_class, given)
        goes_on = "; the same command goes on from here" if verb.resumes else ""
        with _log_on_stderr():
            outcome = run(config)
        if isinstance(outcome, int):
            return outcome
        print(outcome.text())
        failed = getattr(config, "strict", False) and (outcome.failed or getattr(outcome, "incomplete", None))
        return 1 if failed else 0
    except StageError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(" ".join(str(error).split()) or type(error).__name__)
    except KeyboardInterrupt:
        print(f"vig: interrupted{goes_on}", file=sys.stderr)
        return 130


def _parse(
    arguments: list[str],
) -> tuple[list[str], Verb, type[StageConfig], Callable[[Any], Any], dict[str, Any]]:
    """The words of the verb that was called, the verb, its config class and function, and its options as given.

    Only this verb is loaded, so that --help is quick. Raises StageError.
    """
    parser = Parser(
        prog="vig", description="Visual information gain of vision-language datasets, on one machine or a Ray cluster."
    )
    parser.add_argument("--version", action="version", version=f"vig-ray {vig_ray.__version__}")
    of_verbs = parser.add_subparsers(metavar="VERB", required=True)
    children: dict[tuple[str, ...], tuple[Parser, Verb]] = {
        (name,): (of_verbs.add_parser(name, help=verb.help, allow_abbrev=False), verb)
        for name, verb in _verbs().items()
    }
    submit = of_verbs.add_parser(
        "submit",
        help="score, measure, select, train, train-text, eval or study as a job of a Ray cluster",
        allow_abbrev=False,
    )
    of_stages = submit.add_subparsers(metavar="STAGE", required=True)
    for stage, submitted in SUBMITTED.items():
        children["submit", stage] = of_stages.add_parser(stage, help=submitted.help, allow_abbrev=False), submitted
    called = next((words for words in children if tuple(arguments[: len(words)]) == words), None)
    if called is None:
        parser.parse_args(arguments)  # --help, --version, or an error
        raise StageError("give a verb; vig --help lists them")
    child, verb = children[called]
    config_class, run = verb.load()
    add_options(child, config_class)
    if other := verb.instead:
        child.add_argument(other.option, dest="instead", nargs="?", const="", metavar=other.metavar, help=other.help)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise StageError(f"{' '.join(unknown)}: no such option; {child.prog} --help shows what there is")
    return list(called), verb, config_class, run, vars(given)


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """What vig_ray logs goes to standard error, as bare lines, until the verb ends."""
    logger, handler = logging.getLogger("vig_ray"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _fail(message: str) -> int:
    print(f"vig: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
