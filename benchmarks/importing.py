"""Rows/s and memory of `vig import`, one process against several: `python -m benchmarks.importing --rows 200000`.

The data has FineVision's layout: Parquet with the images in it, JPEGs of some 15 KB, one question and answer a row and
four families of ratings; `--layout messages` writes the same as messages. What is printed of each number of workers:
seconds, rows/s and MB/s of input, the most memory of the largest process and of all together, and the ratio to one
process; first the same for copying the files, which is what the disk does. All are done `--rounds` times in turn, and
the fastest is told.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_FILE, ROWS_PER_GROUP = 10_000, 100
IMAGES = 256
RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMAS = {
    "finevision": pa.schema(
        [
            ("images", pa.list_(IMAGE)),
            ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
            ("source", pa.string()),
            *((f"{name}_ratings", pa.list_(pa.int64())) for name in RATINGS),
            *((f"{name}_min", pa.int64()) for name in RATINGS),
        ]
    ),
    "messages": pa.schema(
        [
            ("images", pa.list_(IMAGE)),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("source", pa.string()),
        ]
    ),
}


class Measured(NamedTuple):
    seconds: float
    largest: int  # bytes of the largest process
    together: int  # bytes of all processes


def jpegs(rng: np.random.Generator) -> list[bytes]:
    """Noise over gradients, 256 x 192, of some 15 KB each."""
    found = []
    for _ in range(IMAGES):
        smooth = np.linspace(rng.uniform(0, 255, 3), rng.uniform(0, 255, 3), 256)[None].repeat(192, 0)
        out = io.BytesIO()
        noisy = np.clip(smooth + rng.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
        PIL.Image.fromarray(noisy).save(out, "JPEG", quality=85)
        found.append(out.getvalue())
    return found


def row(number: int, images: list[bytes], layout: str) -> dict[str, Any]:
    question = f"What does figure {number} show between the two marked points, and where does it rise fastest?"
    answer = f"Figure {number} shows a gradient; " + "it rises from left to right, and fastest near the middle. " * 6
    # Each row's own image: a JPEG may have anything after its end.
    image = {"bytes": images[number % IMAGES] + number.to_bytes(8, "little"), "path": None}
    made: dict[str, Any] = {"images": [image], "source": f"set{number % 7}"}
    if layout == "messages":
        turns = [{"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": answer}]
        return made | {"messages": turns}
    rating = 1 + number % 5
    made |= {f"{name}_ratings": [rating] for name in RATINGS} | {f"{name}_min": rating for name in RATINGS}
    return made | {"texts": [{"user": question, "assistant": answer}]}


def write(folder: Path, rows: int, layout: str) -> int:
    """Write the data; its size in bytes."""
    folder.mkdir(parents=True)
    images = jpegs(np.random.default_rng(0))
    files = -(-rows // ROWS_PER_FILE)
    for file in range(files):
        path = folder / f"train-{file:05d}-of-{files:05d}.parquet"
        with pq.ParquetWriter(path, SCHEMAS[layout]) as writer:
            stop = min(rows, (file + 1) * ROWS_PER_FILE)
            for start in range(file * ROWS_PER_FILE, stop, ROWS_PER_GROUP):
                made = [row(number, images, layout) for number in range(start, min(start + ROWS_PER_GROUP, stop))]
                writer.write_table(pa.Table.from_pylist(made, schema=SCHEMAS[layout]))
    return sum(path.stat().st_size for path in folder.iterdir())


def copied(data: Path, out: Path) -> Measured:
    began = time.perf_counter()
    shutil.copytree(data, out)
    os.sync()
    return Measured(time.perf_counter() - began, 0, 0)


def imported(data: Path, out: Path, workers: int) -> Measured:
    """Import in a process of its own, whose memory and whose children's is looked at ten times a second."""
    words = [sys.executable, "-m", "vig_ray.cli", "import", "--data", str(data), "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen([*words, "--workers", str(workers)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    largest = together = 0
    while process.poll() is None:
        sizes = []
        for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                sizes.append(each.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        largest, together = max([largest, *sizes]), max(together, sum(sizes))
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode())
    os.sync()
    return Measured(seconds, largest, together)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--workers", default="2,4", help="numbers of processes beside one")
    parser.add_argument("--layout", choices=list(SCHEMAS), default="finevision")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="where the data and the outputs lie for a while; the system's own by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        size = write(data, arguments.rows, arguments.layout)
        print(f"{arguments.rows:,} rows of {arguments.layout}, {size / 1e6:,.0f} MB, {os.cpu_count()} cores")
        of_workers = [1, *map(int, arguments.workers.split(","))]
        best: dict[int, Measured] = {}  # 0: the copy
        for _ in range(arguments.rounds):
            for workers in (0, *of_workers):
                measured = imported(data, out, workers) if workers else copied(data, out)
                shutil.rmtree(out)
                best[workers] = min(best.get(workers, measured), measured)
        print(f"copied: {best[0].seconds:.1f} s, {size / best[0].seconds / 1e6:,.0f} MB/s")
        for workers in of_workers:
            it = best[workers]
            print(
                f"{workers} processes: {it.seconds:.1f} s, {arguments.rows / it.seconds:,.0f} rows/s, "
                f"{size / it.seconds / 1e6:,.0f} MB/s, {it.largest / 1e6:,.0f} MB the largest, "
                f"{it.together / 1e6:,.0f} MB together, {best[1].seconds / it.seconds:.2f} times one process, "
                f"{best[0].seconds / it.seconds:.2f} of the copy's speed"
            )


if __name__ == "__main__":
    main()
