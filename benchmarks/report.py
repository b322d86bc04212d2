"""Time and memory of `vig report` at 1e6 and 1e8 answer tokens: `python benchmarks/report.py --tokens 1e6,1e8`.

The scores are made up, in files as `vig score` writes them, 60 tokens a sample on average, without images. What is
printed: seconds and peak resident memory of the whole command, and of the baseline, which is one process that reads the
same columns once and adds the gains up; then both against the size before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.demo import CHECKPOINT
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.schema import scores_schema
from vig_ray.stage import write_stage

ROWS_PER_FILE = 2048
MEAN_TOKENS = 60
VOCABULARY = 32_000
BASELINE = """
import sys, glob, numpy as np, pyarrow.parquet as pq
count = total = 0
for path in sorted(glob.glob(sys.argv[1] + "/scores/*.parquet")):
    table = pq.read_table(path, columns=["sample_key", "source", "vig", "clean_loss", "blur_loss", "token_ids",
                                         "clean_logprobs", "blur_logprobs", "turn"])
    clean, reference = (table[name].combine_chunks().flatten().to_numpy() for name in
                        ("clean_logprobs", "blur_logprobs"))
    count, total = count + len(clean), total + float(np.sum(clean.astype(np.float64) - reference))
print(count, total / count)
"""


def make(directory: Path, tokens: int) -> int:
    """Scores of about so many answer tokens; returns how many there are."""
    scores = directory / "scores"
    scores.mkdir()
    sources = np.array(["coco", "gqa", "ocr_vqa", "textvqa", "vg"])
    made = 0
    for start in range(0, max(1, tokens // MEAN_TOKENS), ROWS_PER_FILE):
        rows = min(ROWS_PER_FILE, tokens // MEAN_TOKENS - start)
        rng = np.random.default_rng(start)
        lengths = 1 + rng.poisson(rng.exponential(MEAN_TOKENS - 1, rows))
        count = int(lengths.sum())
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        # Words by Zipf's law, most of them as sure without the image as with it.
        ids = np.minimum(rng.zipf(1.3, count), VOCABULARY - 1).astype(np.int32)
        clean = -rng.exponential(0.5, count)
        helped = rng.random(count) < 0.15
        reference = np.minimum(clean - np.where(helped, rng.normal(1.5, 1.5, count), rng.normal(0, 0.05, count)), 0)
        clean, reference = clean.astype(np.float32), reference.astype(np.float32)
        begins = np.cumsum(lengths) - lengths
        losses = [-np.add.reduceat(logp.astype(np.float64), begins) / lengths for logp in (clean, reference)]
        turns = np.concatenate([np.arange(length) * 3 // length for length in lengths]).astype(np.int32)
        columns = {
            "sample_key": pa.array([f"made/{start + row:010d}" for row in range(rows)]),
            "id": pa.nulls(rows, pa.string()),
            "source": pa.array(sources[rng.integers(0, 5, rows)]),
            "num_answer_tokens": pa.array(lengths, pa.int32()),
            "num_truncated_tokens": pa.array(np.zeros(rows), pa.int32()),
            "clean_loss": pa.array(losses[0]),
            "blur_loss": pa.array(losses[1]),
            "vig": pa.array(losses[1] - losses[0]),
            "token_ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
            "clean_logprobs": pa.ListArray.from_arrays(offsets, pa.array(clean)),
            "blur_logprobs": pa.ListArray.from_arrays(offsets, pa.array(reference)),
            "turn": pa.ListArray.from_arrays(offsets, pa.array(turns)),
            "note": pa.nulls(rows, pa.string()),
            "error": pa.nulls(rows, pa.string()),
        }
        schema = scores_schema(["blur"])
        table = pa.table([columns[name] for name in schema.names], schema=schema)
        pq.write_table(table, scores / f"{start:010d}.parquet", compression="zstd")
        made += count
    config = ScoreConfig(data="made", model=CHECKPOINT, out=str(directory))
    write_stage(str(scores), "score", config, identity={"references": [{"name": "blur"}]}, complete=True)
    return made


def measured(*command: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of a process, start-up included."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"status {status}\n{printed}")
    return time.monotonic() - began, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default="1e6,1e8")
    arguments = parser.parse_args()
    before: tuple[float, float, float] | None = None
    for tokens in (int(float(size)) for size in arguments.tokens.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            made = make(Path(folder), tokens)
            read, read_memory = measured("-c", BASELINE, folder)
            out = str(Path(folder, "report.html"))
            whole, memory = measured("-m", "vig_ray.cli", "report", "--scores", folder, "--out", out)
            size = Path(out).stat().st_size / 1e6
        grown = ""
        if before is not None:
            grown = f"; {made / before[0]:.0f} times the tokens: {whole / before[1]:.1f} times the time, " + (
                f"{memory / before[2]:.2f} times the memory"
            )
        print(
            f"{made:,} tokens: report {whole:.1f} s, {memory:.2f} GB, {size:.1f} MB of HTML; reading {read:.1f} s, "
            f"{read_memory:.2f} GB; ratio {whole / read:.2f}{grown}",
            flush=True,
        )
        before = made, whole, memory


if __name__ == "__main__":
    main()
