"""Scores of the demo world compared with what is known of it: which answer tokens the image decides.

python -m vig_ray.demo.truth DIR [REFERENCE]     # DIR as `vig demo --out DIR` wrote it
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vig_ray.stage import read_stage
from vig_ray.tables.directories import dataset, scores_directory
from vig_ray.tables.passes import View


@dataclass(frozen=True)
class Known:
    """N answer tokens of M samples. `gain` float64 [N], `decided` bool [N], `kind` of each token's sample [N];
    `sample_gain` float64 [M], `sample_kind` [M]."""

    gain: npt.NDArray[np.float64]
    decided: npt.NDArray[np.bool_]
    kind: npt.NDArray[np.str_]
    sample_gain: npt.NDArray[np.float64]
    sample_kind: npt.NDArray[np.str_]

    def auroc(self) -> float:
        """Probability that a decided token has a larger gain than another one (ties count half)."""
        _, inverse, counts = np.unique(self.gain, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks = (last - (counts - 1) / 2)[inverse]
        positive = int(self.decided.sum())
        negative = len(self.decided) - positive
        return float((ranks[self.decided].sum() - positive * (positive + 1) / 2) / (positive * negative))

    def mean_sample_gain(self, kind: str) -> float:
        """Mean VIG of the samples of one kind, nats."""
        return float(self.sample_gain[self.sample_kind == kind].mean())


def decided_tokens(pieces: list[str], turns: list[int], decided: list[list[list[int]]]) -> npt.NDArray[np.bool_]:
    """Which answer tokens share a character with a decided span of their turn, bool [T].

    `pieces`: the tokens as the demo tokenizer spells them, a leading "▁" for the space before a word.
    """
    is_decided = np.zeros(len(pieces), dtype=bool)
    place, current = 0, -1
    for index, (piece, turn) in enumerate(zip(pieces, turns, strict=True)):
        if turn != current:
            place, current = -1, turn  # the first piece's space is the template's, before the answer
        start, place = place, place + len(piece)
        is_decided[index] = any(start < last and place > first for first, last in decided[turn])
    return is_decided


def read(folder: str, reference: str | None = None) -> Known:
    """The scores in `folder`/scores with what `folder`/data/truth.jsonl says of them; by default of their first
    reference."""
    from transformers import AutoTokenizer

    scores = scores_directory(folder)
    record = read_stage(scores) or {}
    tokenizer = AutoTokenizer.from_pretrained(record["config"]["model"])  # each look's has words of its own
    with open(os.path.join(folder, "data", "truth.jsonl")) as file:
        truth = [json.loads(line) for line in file]
    view = View.of(record, scores, reference)
    gains, decided, kinds = [], [], []
    sample_gains, sample_kinds = [], []
    columns = ["sample_key", "vig", "token_ids", "turn", "clean_logprobs", "reference_logprobs"]
    table = view.table(dataset(scores).to_table(columns=view.stored(columns)), columns)
    rows: list[dict[str, Any]] = table.filter(table["vig"].is_valid()).to_pylist()
    for row in rows:
        known = truth[int(row["sample_key"].rsplit("/", 1)[1])]
        pieces = tokenizer.convert_ids_to_tokens(row["token_ids"])
        gains.append(np.asarray(row["clean_logprobs"], np.float64) - np.asarray(row["reference_logprobs"], np.float64))
        decided.append(decided_tokens(pieces, row["turn"], known["decided"]))
        kinds.append(np.full(len(pieces), known["kind"]))
        sample_gains.append(row["vig"])
        sample_kinds.append(known["kind"])
    return Known(
        np.concatenate(gains),
        np.concatenate(decided),
        np.concatenate(kinds),
        np.array(sample_gains),
        np.array(sample_kinds),
    )


def main() -> None:
    """Print how well token gain separates decided tokens from others, and the mean gain by kind."""
    known = read(*sys.argv[1:3])
    print(
        f"AUROC of token gain: {known.auroc():.4f} over {len(known.gain):,} tokens, {known.decided.mean():.1%} decided"
    )
    decided, others = known.gain[known.decided].mean(), known.gain[~known.decided].mean()
    print(f"mean token gain: decided {decided:+.3f}, others {others:+.3f}")
    for kind in sorted(set(known.sample_kind)):
        of_kind = known.kind == kind
        row = f"{kind:<11} mean VIG {known.mean_sample_gain(kind):+.3f}"
        for name, mask in (("decided", of_kind & known.decided), ("others", of_kind & ~known.decided)):
            row += f"   {name} {known.gain[mask].mean():+.3f}" if mask.any() else ""
        print(row)


if __name__ == "__main__":
    main()
