"""Time and memory of `vig select` at 1e6, 1e7 and 1e8 scored samples: `python benchmarks/selection.py --rows 1e6,1e7`.

The scores are made up, sample columns only, a million rows a file; with `--within source,answer` also the tokens of
their answers, half of them one of a thousand usual ones and half 12 tokens by chance. Both ways are measured: threads,
as on one machine, and Ray Data (`--address local`), as on a cluster. What is printed: seconds, the driver's peak
resident memory, and both against the size before; linear is 10 for ten times the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.schema import scores_schema
from vig_ray.stage import write_stage

ROWS_PER_FILE = 1_000_000
COLUMNS = ("sample_key", "source", "num_answer_tokens", "clean_loss", "blur_loss", "vig", "error")
TOKENS = ("token_ids", "turn")


def answers(rng: np.random.Generator, count: int) -> list[pa.Array]:
    """The ids and turns of `count` answers: one of 1,000 of three tokens each, or 12 by chance."""
    usual = rng.random(count) < 0.5
    lengths = np.where(usual, 3, 12)
    ids = rng.integers(1000, 32_000, lengths.sum())
    starts = np.cumsum(lengths) - lengths
    which = rng.integers(0, 1000, usual.sum())
    for place in range(3):
        ids[starts[usual] + place] = (which * (place + 1)) % 1000
    offsets = pa.array(np.append(starts, lengths.sum()).astype(np.int32))
    lists = [pa.array(ids.astype(np.int32)), pa.array(np.ones(len(ids), np.int16))]
    return [pa.ListArray.from_arrays(offsets, each) for each in lists]


def make(directory: Path, rows: int, *, tokens: bool) -> None:
    """Scores of `rows` samples, a tenth of them text-only, one in a thousand failed; with the answers' `tokens`."""
    scores = directory / "scores"
    scores.mkdir()
    schema = pa.schema([scores_schema(["blur"]).field(name) for name in COLUMNS + TOKENS * tokens])
    sources = np.array(["coco", "gqa", "ocr_vqa", "textvqa", "vg"])
    for start in range(0, rows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, rows - start)
        rng = np.random.default_rng(start)
        kind = rng.random(count)
        failed, text = kind < 0.001, kind > 0.9
        clean = rng.exponential(1.0, count)
        reference = clean + rng.normal(0.1, 0.3, count)
        none = failed | text
        keys = np.char.add("made/", np.char.zfill((start + np.arange(count)).astype(str), 9))
        columns = [
            pa.array(keys, pa.string()),
            pa.array(sources[rng.integers(0, 5, count)], pa.string()),
            pa.array(rng.integers(1, 200, count), pa.int32(), mask=failed),
            pa.array(clean, mask=none),
            pa.array(reference, mask=none),
            pa.array(reference - clean, mask=none),
            pa.array(np.where(failed, "FileNotFoundError: gone", ""), pa.string(), mask=~failed),
        ]
        columns += answers(rng, count) if tokens else []
        columns = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
        pq.write_table(pa.table(columns, schema=schema), scores / f"{start:010d}.parquet")
    config = ScoreConfig(data="made", model="made", out=str(directory))
    write_stage(str(scores), "score", config, identity={"references": [{"name": "blur"}]}, complete=True)


def measured(directory: Path, out: Path, *options: str) -> tuple[float, float]:
    """Seconds and the driver's peak memory in GB of one `vig select`, start-up included."""
    command = [sys.executable, "-m", "vig_ray.cli", "select", "--scores", str(directory), "--out", str(out)]
    began = time.monotonic()
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"vig select: status {status}\n{printed}")
    return time.monotonic() - began, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1e6,1e7,1e8")
    parser.add_argument("--strategy", default="vig-samples")
    parser.add_argument("--within", default="", help="source, answer or both: groups that are ranked by themselves")
    arguments = parser.parse_args()
    before: dict[str, tuple[float, float, float]] = {}
    for rows in (int(float(size)) for size in arguments.rows.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            make(directory, rows, tokens="answer" in arguments.within)
            asked = ["--strategy", arguments.strategy, "--p", "70"]
            asked += ["--within", arguments.within] if arguments.within else []
            for way, options in (("threads", ()), ("Ray Data", ("--address", "local"))):
                out = directory / way
                seconds, memory = measured(directory, out, *asked, *options)
                stage = json.loads((out / "selection.stage.json").read_text())
                kept = stage["selection"]["kept"][0]["total"]["scored"]
                line = f"{rows:>13,} rows, {way:8}: {seconds:7.1f} s, driver {memory:5.2f} GB, kept {kept:,}"
                if way in before:
                    rows_before, seconds_before, memory_before = before[way]
                    line += f"; x{rows / rows_before:g} rows: x{seconds / seconds_before:.1f} time"
                    line += f", x{memory / memory_before:.1f} memory"
                print(line, flush=True)
                before[way] = rows, seconds, memory


if __name__ == "__main__":
    main()
