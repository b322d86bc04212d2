"""`vig demo`: make the demo world, import and score it with the packaged model, print what came out, and report it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field

import vig_ray
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.evaluation.summary import EvalSummary
from vig_ray.options import References
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.summary import ScoreSummary, TokenMean, token_means
from vig_ray.stage import StageConfig, claim, read_stage
from vig_ray.storage import check_writable, join, scheme_of
from vig_ray.tables.passes import View

_LEAST_OCCURRENCES = 20


class DemoConfig(StageConfig):
    """Score a small world whose visual tokens are known."""

    out: str = Field(
        "demo-out", description="directory that gets the dataset (data/), samples/, scores/ and report.html"
    )
    samples: int = Field(1000, ge=1, description="samples to make")
    seed: int = Field(1, description="seed of the dataset")
    reference: References = Field(("blur",), description="what stands for 'no image'; the report is of the first")
    evaluate: bool = Field(
        False,
        description="also train on all samples, on some by chance and on VIG's selection, and ask the trained models "
        "what the images show (OUT/evaluate); takes a few minutes",
    )
    trained: int = Field(8000, ge=100, description="with --evaluate: samples to train on")
    asked: int = Field(100, ge=10, description="with --evaluate: images to ask about")


@dataclass(frozen=True)
class DemoReport:
    """The scores of the demo dataset; `report`: the file that shows them."""

    summary: ScoreSummary
    report: str
    tokens: list[TokenMean]
    spelled: dict[int, str]
    evaluation: EvalSummary | None = None

    def text(self) -> str:
        """Counts, mean gain by kind, the tokens with the highest and the lowest mean gain, and where the scores are."""
        kinds = {
            "color": "only the image tells",
            "place": "only the image tells",
            "caption": "partly what no image shows",
            "turns": "several turns of the other kinds",
            "prior": "a language prior tells, mostly",
            "knowledge": "answerable without the image",
            "partial": "caption with one color wrong",
            "mismatched": "text about another image",
        }
        lines = ["", "mean gain by kind of sample, nats"]
        means = sorted(self.summary.sources.items(), key=lambda item: -item[1].mean)
        lines += [f"  {mean.mean:+7.3f}  {kind:<11} {mean.samples:5d}  {kinds.get(kind, '')}" for kind, mean in means]

        def row(token: TokenMean) -> str:
            return f"{token.mean_gain:+7.3f}  {self.spelled[token.token_id]:<10} {token.count:5d}"

        lines += ["", "answer tokens by mean gain, nats, and how often they occur (the paper's Table 2)"]
        lines += ["  highest                       lowest"]
        highest, lowest = self.tokens[:10], self.tokens[::-1][:10]
        lines += [f"  {row(high)}     {row(low)}" for high, low in zip(highest, lowest, strict=True)]
        asked = ["", self.evaluation.text()] if self.evaluation else []
        return "\n".join([*lines, "", self.summary.text(), f"report: {self.report}", *asked])


def _made(config: DemoConfig, folder: str, write: Callable[[str], object], **options: int) -> str:
    """`folder`, whose content `write` makes where it isn't there yet, of these options. Raises StageError."""
    identity = {"options": options, "vig_ray": vig_ray.__version__}
    output = claim(folder, "demo", identity, overwrite=True, resumes=False)
    if not output.complete:
        output.begin(config)
        write(output.work)
        output.publish(output.work, os.path.basename(folder))
        output.commit(config)
    return folder


def _evaluated(config: DemoConfig) -> EvalSummary:
    """What `vig_ray.demo.evaluate` says of models trained on selections. Raises StageError."""
    from vig_ray.demo import evaluate

    out, samples, images, seed = join(config.out, "evaluate"), config.trained, config.asked, config.seed
    data = _made(
        config, join(out, "data"), lambda to: evaluate.write_samples(to, samples, seed + 70_000),
        samples=samples, seed=seed,
    )  # fmt: skip
    asked = _made(
        config, join(out, "asked"), lambda to: evaluate.write_asked(to, images, seed + 80_000),
        images=images, seed=seed,
    )  # fmt: skip
    return evaluate.run(out, os.path.join(data, "data.json"), asked, images=images, seed=seed)


def run(config: DemoConfig) -> DemoReport:
    """Make, import, score and report the demo dataset in `config.out`."""
    from transformers import AutoTokenizer

    from vig_ray.report.job import ReportConfig
    from vig_ray.report.job import run as report
    from vig_ray.scoring import job

    if scheme_of(config.out):
        raise StageError(f"--out {config.out}: the demo's images are written to a local folder; name one")
    check_writable(config.out)
    count, seed = config.samples, config.seed
    data = _made(config, join(config.out, "data"), lambda to: world.write(to, count, seed), samples=count, seed=seed)
    data = os.path.join(data, "data.json")
    summary = job.run(
        ScoreConfig(data=data, model=CHECKPOINT, out=config.out, reference=config.reference, overwrite=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    view = View.of(read_stage(summary.directory) or {}, summary.directory)
    tokens = token_means(summary.directory, view, least=_LEAST_OCCURRENCES)
    spelled = {token.token_id: tokenizer.convert_ids_to_tokens(token.token_id).lstrip("▁") for token in tokens}
    written = report(
        ReportConfig(scores=config.out, out=join(config.out, "report.html"), title="What the demo's images contribute")
    )
    asked = _evaluated(config) if config.evaluate else None
    return DemoReport(summary, written.out, tokens, spelled, asked)
