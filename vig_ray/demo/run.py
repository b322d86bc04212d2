"""`vig demo`: make the demo world, import and score it with its packaged model, print what came out, and report it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

import vig_ray
from vig_ray.demo.knobs import TEMPLATES, Knobs
from vig_ray.demo.looks import LOOKS, LookName
from vig_ray.errors import StageError
from vig_ray.evaluation.summary import EvalSummary
from vig_ray.options import References
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.summary import ScoreSummary, TokenMean, token_means
from vig_ray.stage import StageConfig, claim, read_stage
from vig_ray.storage import check_writable, join, scheme_of
from vig_ray.tables.passes import View

_LEAST_OCCURRENCES = 20
Share = Annotated[float, Field(ge=0, le=1)]
Write = Callable[[str, int, int, Knobs], str]


class DemoConfig(StageConfig):
    """Score a small world whose visual tokens are known."""

    out: str = Field(
        "demo-out", description="directory that gets the dataset (data/), samples/, scores/ and report.html"
    )
    samples: int = Field(1000, ge=1, description="samples to make")
    seed: int = Field(1, description="seed of the dataset")
    look: LookName = Field(
        "first", description="two things an image; or hard: three to six, which are counted and stand in relations"
    )
    mismatched: Share = Field(
        0.0, description="share of the samples whose image is another scene's, the answer staying as it was"
    )
    prior: Share = Field(
        0.0,
        description="how often a color is its shape's usual one, and an answer its question's, instead of an even draw",
    )
    redundant: Share = Field(0.0, description=f"share of the samples that are near copies of {TEMPLATES}")
    visual: Share | None = Field(
        None, description="share of the samples whose questions need the image; by default as the look has it"
    )
    data_only: bool = Field(
        False, description="only write samples and questions (OUT/data, OUT/asked); no model is run"
    )
    parts: bool = Field(
        False,
        description="only write what a model is aligned from (OUT/parts): a vision tower that sees, a language model "
        "that can't read yet, texts, captions; no model is run",
    )
    reference: References = Field(("blur",), description="what stands for 'no image'; the report is of the first")
    evaluate: bool = Field(
        False,
        description="also train on all samples, on some by chance and on VIG's selection, and ask the trained models "
        "what the images show (OUT/evaluate); takes a few minutes",
    )
    trained: int = Field(8000, ge=100, description="with --evaluate: samples to train on")
    asked: int = Field(100, ge=10, description="with --evaluate or --data-only: images to ask about")

    @property
    def knobs(self) -> Knobs:
        """Of the samples; questions have none."""
        return Knobs(self.mismatched, self.prior, self.redundant, self.visual)

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.evaluate and (self.data_only or self.parts):
            raise ValueError("--data-only and --parts run no model, --evaluate trains some; leave one out")
        return self


@dataclass(frozen=True)
class DemoData:
    """What --data-only wrote: `data`, the samples' data.json, and `asked`, the folder of questions."""

    data: str
    asked: str

    def text(self) -> str:
        """Where the files are."""
        return f"samples: {self.data}\nquestions: {self.asked}"


@dataclass(frozen=True)
class DemoParts:
    """What --parts wrote."""

    folder: str

    def text(self) -> str:
        """Where it is, and what lies in it."""
        return f"parts: {self.folder}\n" + "\n".join(f"  {name:<10} {what}" for name, what in _PARTS.items())


_PARTS = {
    "tower": "a vision tower that sees",
    "language": "a language model with random weights, and its tokenizer",
    "texts": "what it can learn to read by: vig train-text --context conversation",
    "captions": "to align on",
    "other": "other captions, for PRIOR's reference model",
    "held-out": "captions that none of these has",
}
"""What --parts writes, by folder; of data in data.json."""
_TEXTS_A_CAPTION = 8


@dataclass(frozen=True)
class DemoReport:
    """The scores of the demo dataset; `report`: the file that shows them; `kinds`: what each kind of sample is."""

    summary: ScoreSummary
    report: str
    tokens: list[TokenMean]
    spelled: dict[int, str]
    kinds: dict[str, str]
    evaluation: EvalSummary | None = None

    def text(self) -> str:
        """Counts, mean gain by kind, the tokens with the highest and the lowest mean gain, and where the scores are."""
        lines = ["", "mean gain by kind of sample, nats"]
        means = sorted(self.summary.sources.items(), key=lambda item: -item[1].mean)
        lines += [
            f"  {mean.mean:+7.3f}  {kind:<11} {mean.samples:5d}  {self.kinds.get(kind, '')}" for kind, mean in means
        ]

        def row(token: TokenMean) -> str:
            return f"{token.mean_gain:+7.3f}  {self.spelled[token.token_id]:<10} {token.count:5d}"

        lines += ["", "answer tokens by mean gain, nats, and how often they occur (the paper's Table 2)"]
        lines += ["  highest                       lowest"]
        highest, lowest = self.tokens[:10], self.tokens[::-1][:10]
        lines += [f"  {row(high)}     {row(low)}" for high, low in zip(highest, lowest, strict=True)]
        asked = ["", self.evaluation.text()] if self.evaluation else []
        return "\n".join([*lines, "", self.summary.text(), f"report: {self.report}", *asked])


def _made(config: DemoConfig, folder: str, write: Callable[[str], object], **options: object) -> str:
    """`folder`, whose content `write` makes where it isn't there yet, of these options. Raises StageError."""
    identity = {"options": options, "vig_ray": vig_ray.__version__}
    output = claim(folder, "demo", identity, overwrite=True, resumes=False)
    if not output.complete:
        output.begin(config)
        write(output.work)
        output.publish(output.work, os.path.basename(folder))
        output.commit(config)
    return folder


def _samples(config: DemoConfig, folder: str, write: Write, count: int, seed: int) -> str:
    """data.json of `count` samples in `folder`, with the config's knobs. Raises StageError."""
    options: dict[str, object] = {"samples": count, "seed": config.seed, **config.knobs.turned()}
    if config.look != "first":
        options["look"] = config.look
    made = _made(config, folder, lambda to: write(to, count, seed, config.knobs), **options)
    return os.path.join(made, "data.json")


def _asked(config: DemoConfig, folder: str) -> str:
    """The questions, in `folder`: the same for all knobs. Raises StageError."""
    options: dict[str, object] = {"images": config.asked, "seed": config.seed}
    if config.look != "first":
        options["look"] = config.look
    write = LOOKS[config.look].write_asked
    return _made(config, folder, lambda to: write(to, config.asked, config.seed + 80_000), **options)


def _evaluated(config: DemoConfig) -> EvalSummary:
    """What `vig_ray.demo.evaluate` says of models trained on selections. Raises StageError."""
    from vig_ray.demo import evaluate

    out, look, seed = join(config.out, "evaluate"), LOOKS[config.look], config.seed
    data = _samples(config, join(out, "data"), look.write_training, config.trained, seed + 70_000)
    asked = _asked(config, join(out, "asked"))
    return evaluate.run(out, look, data, asked, images=config.asked, seed=seed)


def _parts(config: DemoConfig) -> DemoParts:
    """Parts of a model, and what it is aligned on; see `_PARTS`. Raises StageError."""
    from vig_ray.demo import captions, parts

    count, seed, look = config.samples, config.seed, LOOKS[config.look]

    def write(to: str) -> None:
        parts.write_tower(join(to, "tower"), look.checkpoint)
        parts.write_language_model(join(to, "language"), seed, look.checkpoint)
        captions.write_texts(join(to, "texts"), _TEXTS_A_CAPTION * count, seed + 50_000, look.telling)
        captions.write(join(to, "captions"), count, seed + 60_000, look.telling)
        captions.write(join(to, "other"), count, seed + 70_000, look.telling)
        captions.write(join(to, "held-out"), config.asked, seed + 51_000, look.telling)

    options: dict[str, object] = {"samples": count, "seed": seed, "asked": config.asked}
    if config.look != "first":
        options["look"] = config.look
    return DemoParts(_made(config, join(config.out, "parts"), write, **options))


def run(config: DemoConfig) -> DemoReport | DemoData | DemoParts:
    """Make, import, score and report the demo dataset in `config.out`, or only make it."""
    if scheme_of(config.out):
        raise StageError(f"--out {config.out}: the demo's images are written to a local folder; name one")
    check_writable(config.out)
    if config.parts:
        return _parts(config)
    look = LOOKS[config.look]
    data = _samples(config, join(config.out, "data"), look.write, config.samples, config.seed)
    if config.data_only:
        return DemoData(data, _asked(config, join(config.out, "asked")))

    from transformers import AutoTokenizer

    from vig_ray.report.job import ReportConfig
    from vig_ray.report.job import run as report
    from vig_ray.scoring import job

    summary = job.run(
        ScoreConfig(data=data, model=look.checkpoint, out=config.out, reference=config.reference, overwrite=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(look.checkpoint)
    view = View.of(read_stage(summary.directory) or {}, summary.directory)
    tokens = token_means(summary.directory, view, least=_LEAST_OCCURRENCES)
    spelled = {token.token_id: tokenizer.convert_ids_to_tokens(token.token_id).lstrip("▁") for token in tokens}
    written = report(
        ReportConfig(scores=config.out, out=join(config.out, "report.html"), title="What the demo's images contribute")
    )
    evaluation = _evaluated(config) if config.evaluate else None
    return DemoReport(summary, written.out, tokens, spelled, look.kinds, evaluation)
