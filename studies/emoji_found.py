"""What emoji.yaml's or trust-emoji.yaml's scores and selections made of the wrong answers:
`python studies/emoji_found.py runs/emoji`.

How well the gain and the loss tell wrong answers from right ones, by kind of question, is the probability that of a
wrong and a right one the wrong one has the lower gain, or the greater loss (AUROC; 0.5 is by chance). What a selection
kept is told in tokens: how many per cent of those that are trained on are of wrong answers. All are means of the seeds,
with the least and the greatest. Read are the study's outputs and the truth.jsonl beside its data.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from vig_ray.errors import StageError
from vig_ray.stage import read_stage
from vig_ray.tables.directories import dataset

Floats = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]
ALL = "all"


def auroc(values: Floats, positive: Truth) -> float:
    """Probability that one of the positive has a greater value than one of the others; ties count half. NaN where
    there are none of either."""
    first, others = int(positive.sum()), int((~positive).sum())
    if not first or not others:
        return float("nan")
    above = rankdata(values)[positive].sum() - first * (first + 1) / 2
    return float(above / (first * others))


def outputs(study: str, part: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Each scores/ or selection/ of a study's runs that is whole, with its config."""
    runs = os.path.join(study, "runs")
    for name in sorted(os.listdir(runs)) if os.path.isdir(runs) else []:
        directory = os.path.join(runs, name, part)
        record = read_stage(directory)
        if record is not None and record["complete"]:
            yield directory, record["config"]


def truth_of(config: dict[str, object]) -> list[dict[str, object]]:
    """The lines of truth.jsonl beside the data that was scored. Raises StageError where it isn't there."""
    data = config["data"]
    path = os.path.join(os.path.dirname(data if isinstance(data, str) else str(data[0])), "truth.jsonl")  # type: ignore[index]
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}; it lies beside the data that emoji.py wrote") from error


def row_of(sample_key: str) -> int:
    """The row of data.json that a sample is of."""
    return int(sample_key.rsplit("/", 1)[1])


def told_apart(scores: str, truth: Sequence[dict[str, object]]) -> dict[str, tuple[float, float, float]]:
    """By kind of question, and of all: the share that is wrong, and the AUROC of the gain and of the loss."""
    columns = ["sample_key", "vig", "clean_loss"]
    rows = [row for row in dataset(scores).to_table(columns=columns).to_pylist() if row["vig"] is not None]
    known = [truth[row_of(row["sample_key"])] for row in rows]
    wrong = np.array([each["wrong"] for each in known], bool)
    kinds = np.array([each["kind"] for each in known], str)
    gain, loss = (np.array([row[name] for row in rows], np.float64) for name in columns[1:])
    found = {}
    for kind in (*sorted(set(kinds)), ALL):
        of = (kinds == kind) | (kind == ALL)
        found[kind] = (float(wrong[of].mean()), auroc(-gain[of], wrong[of]), auroc(loss[of], wrong[of]))
    return found


def wrong_tokens(selection: str, truth: Sequence[dict[str, object]]) -> float:
    """The share of the tokens of a selection that are of wrong answers, by their weights."""
    sums = {True: 0.0, False: 0.0}
    for row in dataset(selection).to_table(columns=["sample_key", "token_ids", "token_weights"]).to_pylist():
        weights = row["token_weights"] or [1.0] * len(row["token_ids"])
        sums[bool(truth[row_of(row["sample_key"])]["wrong"])] += sum(weights)
    return sums[True] / (sums[True] + sums[False])


def named(config: Mapping[str, object]) -> str:
    """A selection's strategy, and the options that trust-emoji.yaml varies."""
    found = [str(config["strategy"])]
    if config.get("reference") not in (None, "blur"):
        found.append(f"by {config['reference']}")
    for option in ("within", "calibrate"):
        by = config.get(option)
        if by:
            found.append(f"{option} {by if isinstance(by, str) else ','.join(map(str, by))}")  # type: ignore[call-overload]
    return " ".join(found)


def spread(values: Iterable[float]) -> str:
    """The mean, the least and the greatest."""
    several = np.array(list(values))
    return f"{several.mean():6.3f} [{several.min():.3f}, {several.max():.3f}]"


def text(study: str) -> str:
    """Both tables. Raises StageError where the study has no scores, or its data no truth.jsonl."""
    apart: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    truths = {}
    for scores, config in outputs(study, "scores"):
        truths[os.path.dirname(scores)] = truth_of(config)
        for kind, numbers in told_apart(scores, truths[os.path.dirname(scores)]).items():
            apart[kind].append(numbers)
    if not apart:
        raise StageError(f"{study}: no scores of a study here; vig study studies/emoji.yaml --out {study} makes them")
    lines = [f"{'question':<12}{'wrong':<24}{'AUROC, low gain':<24}AUROC, great loss"]
    for kind, found in apart.items():
        lines.append(f"{kind:<12}" + "".join(f"{spread(column):<24}" for column in zip(*found, strict=True)).rstrip())
    kept = defaultdict(list)
    for selection, config in outputs(study, "selection"):
        kept[named(config)].append(wrong_tokens(selection, truths[str(config["scores"]).rstrip("/")]))
    width = max(12, 2 + max(map(len, kept), default=0))
    lines += ["", f"{'selection':<{width}}tokens of wrong answers"]
    lines += [f"{name:<{width}}{spread(shares)}" for name, shares in kept.items()]
    return "\n".join(lines)


def main(given: Sequence[str]) -> int:
    """The command line; the exit status."""
    if len(given) != 1:
        print("python studies/emoji_found.py FOLDER   the --out of vig study studies/emoji.yaml", file=sys.stderr)
        return 2
    try:
        print(text(given[0]))
    except StageError as error:
        print(f"emoji_found.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
