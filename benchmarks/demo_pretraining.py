"""Alignment, PRIOR and VDEP on the demo world, from a new projector to instruction tuning, three seeds of it:
`python benchmarks/demo_pretraining.py`, about twenty minutes on two cores.

A vision tower that sees shapes and a language model that has only read are put together with a random projector
(`vig assemble`). It is aligned on captions in several ways, of which all see the same captions in the same order:

    next-token     the usual loss, one epoch
    twice          the same, two epochs: as many samples as VDEP sees
    prior          weights by PRIOR: a language model trained on other captions (`vig train-text`), the text pass,
                   `vig select --strategy prior`
    vdep           VDEP's hybrid batches, the data doubled

Each aligned model then scores the samples of instruction tuning (VIG, blur), selects by its own scores (p = 70), and is
tuned on its selection. Printed for each, as mean (least..greatest) over seeds: of the aligned model how often the
likeliest token is right, the loss and the gain on held-out captions, where the image decides the token and elsewhere;
the AUROC of its gains, on the samples that it scores, between tokens that the image decides and others; of the tuned
model accuracy and loss on held-out samples. Then PRIOR's Figure 8, its weights of the captions by length and by place,
and Figure 9, the loss of held-out captions' tokens whose weight is over a threshold, and of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vig_ray.cluster import machines
from vig_ray.demo import captions, held_out, parts, truth, world
from vig_ray.model.load import Prompts, load_model
from vig_ray.tables.directories import dataset

Floats = npt.NDArray[np.float64]

WAYS: Mapping[str, tuple[object, ...]] = {
    "next-token": (),
    "twice": ("--epochs", 2),
    "prior": (),
    "vdep": ("--objective", "vdep", "--vdep-doubled"),
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `captions`: aligned on; `reference`: other captions that PRIOR's language model reads;
    `texts`: what the language model has read before; `samples`: of instruction tuning; `held_out`: of either kind."""

    texts: int = 12_000
    reference: int = 2500
    captions: int = 1500
    samples: int = 3000
    held_out: int = 400
    batch: int = 32


def vig(*words: object) -> None:
    """`vig WORDS` in this process and its Ray; what it prints is shown where it fails. Raises RuntimeError."""
    from vig_ray import cli

    out, status = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
    if status:
        raise RuntimeError(f"vig {' '.join(map(str, words))}: status {status}\n{out.getvalue()[-2000:]}")


def read_first(folder: str, sizes: Sizes) -> None:
    """The parts: `folder`/tower, and `folder`/language/model, which has read texts, where there are any."""
    parts.write_tower(f"{folder}/tower")
    if not sizes.texts:
        parts.write_language_model(f"{folder}/language/model")
        return
    parts.write_language_model(f"{folder}/new")
    data = captions.write_texts(f"{folder}/texts/data", sizes.texts, seed=50_000)
    vig("import", "--data", data, "--out", f"{folder}/texts")
    learn = ("--lr", 2e-3, "--global-batch", 2 * sizes.batch, "--length", 2048)
    vig("train-text", "--model", f"{folder}/new", "--samples", f"{folder}/texts/samples", "--context", "conversation",
        *learn, "--out", f"{folder}/language")  # fmt: skip


def held_out_data(folder: str, sizes: Sizes) -> None:
    """`folder`/captions and `folder`/samples, which no run sees."""
    for name, write, seed in (("captions", captions.write, 51_000), ("samples", world.write, 52_000)):
        vig("import", "--data", write(f"{folder}/{name}/data", sizes.held_out, seed), "--out", f"{folder}/{name}")


class Seed:
    """One seed of it: the projector, the captions, the samples and every order are its own."""

    def __init__(self, folder: str, shared: str, seed: int, sizes: Sizes) -> None:
        self.folder, self.shared, self.seed, self.sizes = folder, shared, seed, sizes
        self.captions, self.samples = f"{folder}/captions", f"{folder}/tune"

    def prepare(self) -> None:
        """The model with its new projector, its data, and PRIOR's weights of the captions."""
        shared, sizes, other = self.shared, self.sizes, f"{self.folder}/other"
        vig("assemble", "--language-model", f"{shared}/language/model", "--vision-tower", f"{shared}/tower",
            "--projector", "random", "--seed", self.seed, "--dtype", "float32",
            "--out", f"{self.folder}/start")  # fmt: skip
        for folder, write, count, seed in (
            (self.captions, captions.write, sizes.captions, 60_000),
            (other, captions.write, sizes.reference, 70_000),
            (self.samples, world.write, sizes.samples, 80_000),
        ):
            vig("import", "--data", write(f"{folder}/data", count, seed + self.seed), "--out", folder)
        vig("train-text", "--model", f"{shared}/language/model", "--samples", f"{other}/samples", "--lr", 5e-4,
            "--global-batch", 2 * sizes.batch, "--length", 2048, "--seed", self.seed, "--out", other)  # fmt: skip
        vig("score", "--data", f"{self.captions}/samples", "--model", f"{self.folder}/start", "--template", "plain",
            "--passes", "text", "--reference-model", f"{other}/model", "--out", self.captions)  # fmt: skip
        vig("select", "--scores", self.captions, "--strategy", "prior", "--seed", self.seed, "--out", self.captions)

    def aligned(self, way: str) -> str:
        """Align in this way; returns the model's folder."""
        out = f"{self.folder}/{way}"
        weights = ("--selection", f"{self.captions}/selection") if way == "prior" else ()
        vig("train", "--stage", "align", "--model", f"{self.folder}/start", "--samples", f"{self.captions}/samples",
            "--train", "projector,language", "--lr", 1e-3, "--global-batch", self.sizes.batch, "--seed", self.seed,
            *weights, *WAYS[way], "--out", out)  # fmt: skip
        return f"{out}/model"

    def tuned(self, way: str, model: str) -> tuple[str, float]:
        """Score the samples with an aligned model, select, tune; returns the tuned model's folder, and the AUROC."""
        out = f"{self.folder}/{way}-tuned"
        vig("score", "--data", f"{self.samples}/samples", "--model", model, "--out", out)
        os.symlink(f"{self.samples}/data", f"{out}/data")  # where the truth is looked for
        vig("select", "--scores", out, "--p", 70, "--seed", self.seed, "--out", out)
        vig("train", "--model", model, "--samples", f"{self.samples}/samples", "--selection", f"{out}/selection",
            "--lr", 5e-4, "--global-batch", self.sizes.batch, "--seed", self.seed, "--out", out)  # fmt: skip
        return f"{out}/model", truth.read(out).auroc()


def weights_by_key(scores: str) -> dict[str, Floats]:
    """PRIOR's importance of every token, w = 1 - p_ref (equation 3, alpha 1), by the samples' keys."""
    table = dataset(scores).to_table(columns=["sample_key", "text_logprobs"])
    return {
        key: -np.expm1(np.asarray(logprobs, np.float64))
        for key, logprobs in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    }


@dataclass
class Figures:
    """What PRIOR's Figures 8 and 9 are made of, of all seeds. `lengths`, `means`: of each caption, its tokens and its
    mean weight. `places`: weights by place, four places together. `losses`: by way, and of each seed, the loss and the
    weight of every token of the held-out captions."""

    lengths: list[int] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    places: dict[int, list[float]] = field(default_factory=dict)
    losses: dict[str, list[tuple[Floats, Floats]]] = field(default_factory=dict)

    def add_captions(self, weights: Mapping[str, Floats]) -> None:
        """The captions of a seed."""
        for weights_T in weights.values():
            self.lengths.append(len(weights_T))
            self.means.append(float(weights_T.mean()))
            for place, weight in enumerate(weights_T):
                self.places.setdefault(place // 4, []).append(float(weight))

    def add_losses(self, way: str, measured: held_out.Measured, weights: Mapping[str, Floats]) -> None:
        """The held-out captions under a model aligned in this way."""
        of_tokens = np.concatenate([weights[key] for key in measured.keys])
        self.losses.setdefault(way, []).append((measured.loss, of_tokens))

    def text(self) -> Iterator[str]:
        """Both figures as tables."""
        lengths, of_captions = np.array(self.lengths), np.array(self.means)
        correlation = np.corrcoef(lengths, of_captions)[0, 1]
        told = f"correlation of a caption's length and its mean weight {correlation:+.3f} (the paper: -0.243)"
        yield f"weights of {len(lengths):,} captions (Figure 8): {told}"
        edges = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1])
        for low, high in itertools.pairwise(edges):
            within = (lengths >= low) & (lengths <= high)
            yield f"  {low:3.0f} to {high:3.0f} tokens: mean weight {of_captions[within].mean():.3f}"
        for place, values in sorted(self.places.items()):
            yield f"  places {4 * place + 1:3d} to {4 * place + 4:3d}: mean weight {statistics.mean(values):.3f}"
        yield "loss of held-out captions' tokens by weight (Figure 9), nats, mean over seeds"
        yield f"  {'threshold':9}" + "".join(
            f"{way + side:>24}" for side in (", above", ", below") for way in self.losses
        )
        for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
            cells = []
            for above in (True, False):
                for of_seeds in self.losses.values():
                    sides = [loss[(weight >= threshold) == above] for loss, weight in of_seeds]
                    means = [float(side.mean()) for side in sides if len(side)]
                    cells.append(statistics.mean(means) if means else float("nan"))
            yield f"  {threshold:9.1f}" + "".join(f"{cell:24.4f}" for cell in cells)


ROWS = {
    "aligned": (
        "accuracy, image decides",
        "loss, image decides",
        "loss, others",
        "gain, image decides",
        "gain, others",
    ),
    "tuned": ("accuracy, image decides", "accuracy, others", "loss, image decides", "loss, others"),
}


def one_seed(seed: Seed, ways: Sequence[str], figures: Figures) -> dict[str, dict[str, float]]:
    """These ways of one seed: of each, its numbers by name."""
    seed.prepare()
    figures.add_captions(weights_by_key(f"{seed.captions}/scores"))
    vig("score", "--data", f"{seed.shared}/captions/samples", "--model", f"{seed.folder}/start", "--template", "plain",
        "--passes", "text", "--reference-model", f"{seed.folder}/other/model",
        "--out", f"{seed.folder}/held-out")  # fmt: skip
    weights = weights_by_key(f"{seed.folder}/held-out/scores")
    of_ways = {}
    for way in ways:
        aligned = seed.aligned(way)
        model = load_model(aligned, dtype="float32", device="cpu")
        of_captions = held_out.measure(f"{seed.shared}/captions", model, Prompts(aligned, "plain"))
        if way in ("next-token", "prior"):
            figures.add_losses(way, of_captions, weights)
        tuned, auroc = seed.tuned(way, aligned)
        model = load_model(tuned, dtype="float32", device="cpu")
        of_samples = held_out.measure(f"{seed.shared}/samples", model, Prompts(tuned), world.CLEAN)
        columns = {"aligned": of_captions.columns(), "tuned": of_samples.columns()}
        of_ways[way] = {f"{name}: {row}": columns[name][row] for name, rows in ROWS.items() for row in rows}
        of_ways[way]["AUROC of VIG by the aligned model"] = auroc
    return of_ways


def table(of_seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Ways by columns, numbers by rows: mean (least..greatest) over seeds."""
    ways = list(of_seeds[0])
    yield f"{'':38}" + "".join(f"{way:>28}" for way in ways)
    for row in of_seeds[0][ways[0]]:
        cells = []
        for way in ways:
            values = [of_ways[way][row] for of_ways in of_seeds]
            cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f}..{max(values):.4f})")
        yield f"{row:38}" + "".join(f"{cell:>28}" for cell in cells)


def run(
    folder: str, seeds: int, sizes: Sizes, tell: Callable[[str], None], ways: Sequence[str] = tuple(WAYS)
) -> list[dict[str, dict[str, float]]]:
    """Everything, in `folder`, in the Ray of this process; what came out is told line by line, and returned by seed."""
    began = time.monotonic()
    read_first(folder, sizes)
    held_out_data(folder, sizes)
    figures, of_seeds = Figures(), []
    for number in range(seeds):
        of_seeds.append(one_seed(Seed(f"{folder}/{number}", folder, number, sizes), ways, figures))
        tell(f"seed {number}: {time.monotonic() - began:.0f} s since the start")
    for line in (*table(of_seeds), "", *figures.text()):
        tell(line)
    return of_seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--captions", type=int, default=Sizes.captions, help="that are aligned on")
    parser.add_argument("--out", help="new folder that keeps what is made (default: none does)")
    options = parser.parse_args()
    logging.getLogger("vig_ray").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as aside, machines(None, actors=4):
        folder = os.path.abspath(options.out or aside)
        os.makedirs(folder, exist_ok=True)
        run(folder, options.seeds, Sizes(captions=options.captions), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
