"""What the scoring job costs beside its GPUs: `python benchmarks/cluster.py`.

    sample      CPU time of preparing one sample for a 336-pixel model (decode, blur, pad, resize, tokenise), one core;
                how many cores that asks for beside a GPU
    actors      samples/s of the whole Ray job with 1, 2, 4 and 8 engines that sleep as long as an H200 would compute,
                against their number times one engine's rate, on the demo's small images: as far as this machine's cores
                go, the pipeline isn't the limit
    driver      peak memory of the driver with 1e4 and 1e6 rows, an engine that costs nothing

The engines are benchmarks/sleeping.py. An H200 is taken to score 35 samples/s, 8 of them 280.
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

import cv2
import numpy as np
import PIL.Image
import psutil
import pyarrow as pa

from vig_ray.dataset.schema import SAMPLES
from vig_ray.demo import CHECKPOINT, world
from vig_ray.scoring.prepare import Preparer
from vig_ray.scoring.prepared import unpack

H200 = 35.0  # samples/s
HERE = Path(__file__).parent
# Width and height, pixels: a small one, COCO's usual one, and a photograph.
SIZES = ((336, 336), (640, 480), (1024, 768))


def sample_part(folder: Path, rounds: int) -> None:
    checkpoint = wide_eyed(folder / "model")
    preparer = Preparer(
        model=checkpoint, template="auto", max_length=None, passes=("clean", "blur"), too_long="error",
        max_image_pixels=10**8,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    print("sample  CPU time of one sample on one core, 336-pixel model, JPEG images", flush=True)
    for width, height in SIZES:
        rows = []
        for number in range(32):
            noise = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
            pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
            uri = folder / f"{width}-{number}.jpg"
            PIL.Image.fromarray(pixels).save(uri, quality=90)
            turns = [{"role": "user", "text": "<image>\nWhat is this?"}, {"role": "assistant", "text": "A red circle."}]
            image = {"uri": f"file://{uri}", "bytes": None}
            row = {"sample_key": str(number), "images": [image], "conversation": turns}
            rows.append({name: row.get(name) for name in SAMPLES.names})
        table = pa.Table.from_pylist(rows, schema=SAMPLES)
        best = min(timed(preparer, table) for _ in range(rounds)) / len(rows)
        print(
            f"  {width} x {height}: {1000 * best:6.1f} ms, {best * H200:4.2f} cores a GPU of {H200:.0f} samples/s, "
            f"{best * 8 * H200:4.1f} for 8",
            flush=True,
        )


def timed(preparer: Preparer, table: pa.Table) -> float:
    began = time.process_time()
    errors = [row["error"] for row in unpack(preparer(table)) if row["error"]]
    assert not errors, errors[0]
    return time.process_time() - began


def wide_eyed(folder: Path) -> str:
    """The demo model's configuration for images of 336 pixels; no weights, which preparing needs not."""
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(CHECKPOINT)
    config.vision_config.image_size = 336
    config.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    processor.image_processor.size = {"shortest_edge": 336}
    processor.image_processor.crop_size = {"height": 336, "width": 336}
    processor.save_pretrained(folder)
    return str(folder)


def actors_part(folder: Path, counts: list[int], seconds: float) -> None:
    one = None
    print(f"actors  engines that sleep {1000 / H200:.1f} ms a sample", flush=True)
    for count in counts:
        here = folder / f"actors-{count}"
        data = world.write(str(here / "data"), int(count * H200 * seconds), seed=12)
        score(here, data, 1000 / H200, "--workers", count, "--window", 32, "--rows-per-file", 256)
        rate = steady(here)
        one = one or rate
        print(f"  {count}: {rate:6.1f} samples/s, {rate / count / one:.2f} of {count} times one", flush=True)


def steady(out: Path) -> float:
    """Samples/s between a quarter and nine tenths of the rows: all engines are up, none has run dry."""
    timing = json.loads((out / "scores.stage.json").read_text())["timing"]
    times, rows = np.array(timing["rows_over_time"]).T
    inside = (rows > 0.25 * rows[-1]) & (rows < 0.9 * rows[-1])
    return float(np.polyfit(times[inside], rows[inside], 1)[0])


def driver_part(folder: Path, counts: list[int]) -> None:
    print("driver  peak memory, an engine that costs nothing", flush=True)
    first = None
    for count in counts:
        here = folder / f"driver-{count}"
        (here / "data").mkdir(parents=True)
        world.write(str(here / "few"), 64, seed=13)
        some = [row for row in json.loads((here / "few" / "data.json").read_text()) if row.get("image")]
        with (here / "data" / "data.jsonl").open("w") as file:
            for number in range(count):
                file.write(json.dumps(some[number // 64 % len(some)]) + "\n")
        began = time.monotonic()
        words = ["--images", here / "few", "--workers", 1, "--prepare-workers", 2]
        peak = score(here, str(here / "data" / "data.jsonl"), 0.0, *words)
        first = first or peak
        took = time.monotonic() - began
        print(f"  {count:>9,} rows: {peak / 1e6:6.0f} MB, {peak / first:.2f} of the first; {took:.0f} s", flush=True)


def score(out: Path, data: str, milliseconds: float, *words: object) -> int:
    """Run `vig score`; returns the most memory that its own process held, bytes."""
    command = [sys.executable, "-m", "vig_ray.cli", "score", "--data", data, "--model", CHECKPOINT, "--out", str(out),
               "--engine", "sleeping:engine", "--dtype", "float32", *map(str, words)]  # fmt: skip
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    process = psutil.Popen(
        command, env=os.environ | {"PYTHONPATH": path, "VIG_SLEEP_MS": str(milliseconds)}, cwd=HERE.parent,
        stdout=subprocess.DEVNULL, stderr=(stderr := (out / "stderr").open("w+")),
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.2)
    stderr.seek(0)
    assert process.wait() == 0, stderr.read()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("sample", "actors", "driver", "all"), default="all")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=40.0, help="how long each number of engines runs")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.part in ("sample", "all"):
            sample_part(folder, options.rounds)
        if options.part in ("actors", "all"):
            actors_part(folder, options.engines, options.seconds)
        if options.part in ("driver", "all"):
            driver_part(folder, options.rows)


if __name__ == "__main__":
    main()
