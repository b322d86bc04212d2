"""Outputs of the real verbs: what others put there stays, work that is done isn't done again, anyone reads them."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as pads
import pytest

from tests.end_to_end.conftest import ROOT
from tests.selection.made import made_up, write, write_selected
from vig_ray.cli import main
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.scoring import job as scoring
from vig_ray.scoring.config import ScoreConfig
from vig_ray.selection import job as selecting
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import Claim, read_stage
from vig_ray.training import job as training
from vig_ray.training.config import TrainConfig

SAMPLES = 40


def vig(*words: object) -> None:
    """A verb in this process. Raises AssertionError where it ends with another status than 0."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0, words


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def plant(folder: Path, *names: str) -> dict[str, bytes]:
    """Foreign files; what lies where."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"mine: {name}".encode())
    return {name: f"mine: {name}".encode() for name in names}


def untouched(folder: Path, planted: dict[str, bytes]) -> bool:
    return all((folder / name).is_file() and (folder / name).read_bytes() == held for name, held in planted.items())


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory, demo_model: Any, demo_formatter: Any) -> Path:
    """Demo samples, imported, scored and selected without Ray."""
    out = tmp_path_factory.mktemp("selected")
    write_selected(out, demo_model, demo_formatter, samples=SAMPLES, p=60)
    return out


def read_count(reader: str, directory: Path) -> int:
    """How many rows a reader that knows nothing of this project finds in a directory, given as it is."""
    read: dict[str, Callable[[], int]] = {
        "pandas": lambda: len(pd.read_parquet(directory)),
        "polars": lambda: len(pl.read_parquet(directory)),
        "duckdb": lambda: duckdb.sql(f"select count(*) from read_parquet('{directory}')").fetchall()[0][0],
        "pyarrow": lambda: pads.dataset(directory).count_rows(),
    }
    return read[reader]()


READERS = ("pandas", "polars", "duckdb", "pyarrow")


@pytest.mark.parametrize("overwrite", [False, True])
def test_select_leaves_a_directory_that_holds_notes(tmp_path: Path, overwrite: bool) -> None:
    scores = write(tmp_path, made_up(50))
    planted = plant(tmp_path, "selection/notes.txt")
    with pytest.raises(StageError, match=r"selection/notes\.txt was not written by `vig select`"):
        selecting.run(SelectConfig(scores=scores, out=str(tmp_path), overwrite=overwrite))
    assert untouched(tmp_path, planted)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["training/notes.txt", "adapter/adapter_config.json", "model/config.json"])
def test_train_leaves_what_it_did_not_write(selected: Path, tmp_path: Path, name: str, overwrite: bool) -> None:
    planted = plant(tmp_path, name)
    options = {"model": CHECKPOINT, "samples": str(selected), "selection": str(selected), "out": str(tmp_path)}
    with pytest.raises(StageError, match=f"{name} was not written by `vig train`"):
        # So many held-out samples that it would end before the first step even if it took the directory.
        training.run(TrainConfig(**options, lora=True, held_out=10**6, overwrite=overwrite))
    assert untouched(tmp_path, planted)


@pytest.mark.long
def test_overwrite_given_again_starts_nothing_over(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a job that was killed, or still runs, nor one that is finished; meanwhile anyone reads what is there."""
    config = ScoreConfig(
        data=world.write(str(tmp_path / "data"), 80, 5), model=CHECKPOINT, out=str(tmp_path), rows_per_file=10,
        workers=1, prepare_workers=1, overwrite=True,
    )  # fmt: skip
    scores = tmp_path / "scores"
    ended, failures, reads = threading.Event(), list[Exception](), list[int]()

    def read_all_the_time() -> None:
        while not ended.wait(0.3):  # more often is in the way of the scoring
            if not list(scores.glob("*")):
                continue
            try:
                reads.extend(read_count(reader, scores) for reader in READERS)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=read_all_the_time, daemon=True)
    thread.start()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "summarise", killed)
    with pytest.raises(KeyboardInterrupt):
        scoring.run(config)
    monkeypatch.undo()
    ended.set()
    thread.join()
    assert not failures
    assert max(reads, default=0) <= 80
    assert not (read_stage(str(scores)) or {})["complete"]
    assert {read_count(reader, scores) for reader in READERS} == {80}
    before = {path: path.stat().st_mtime_ns for path in scores.iterdir()}
    for _ in range(2):
        assert scoring.run(config).read == 80
        assert {path: path.stat().st_mtime_ns for path in scores.iterdir()} == before
    assert (read_stage(str(scores)) or {})["timing"]["rows_over_time"] == []
    assert not list(tmp_path.glob(".score-*"))
    assert {read_count(reader, scores) for reader in READERS} == {80}


@pytest.mark.parametrize("reader", READERS)
def test_anyone_reads_samples_and_selections(selected: Path, reader: str) -> None:
    kept = (read_stage(str(selected / "selection")) or {})["selection"]["kept"][0]["total"]
    assert read_count(reader, selected / "samples") == SAMPLES
    assert read_count(reader, selected / "selection") == kept["scored"] + kept["text_only"]


PLACES = (
    "samples/notes.txt", "samples/part-00000.parquet", "scores/stage.json", "scores/0.parquet", "selection/deep/a",
    "training/checkpoints/step-00000001-abcdef/whole.json", "training/log.jsonl", "model/config.json", "out.jsonl",
    "out.jsonl.images/a.png", "exported/config.json", "report.html", "report.json", "report-figures/tokens.svg",
    "data/data.json", "samples.stage.json", "scores.stage.json", "selection.stage.json", "training.stage.json",
    "exported.stage.json", "out.jsonl.stage.json", "report.html.stage.json", "data.stage.json",
)  # fmt: skip
AROUND = (
    "notes.txt", "data.json", "stage.json", "config.json", "scores-old/a.parquet", "samples.tmp/b",
    "model.unfinished/c", "exported.unfinished/d", "out.jsonl.partial", ".score-checkpoint/e.parquet",
    "adapter/adapter_config.json", "report-figures/mine.svg", "../beside/scores/f.parquet",
)  # fmt: skip


def verbs(source: Path, out: Path, *, seed: int = 42) -> dict[str, list[object]]:
    """Every verb that writes, the input from `source` and the output in `out`; `seed` makes other options of it."""
    chosen = ["--samples", source, "--selection", source]
    return {
        "import": ["import", "--data", source / "data" / "data.json", "--out", out, "--rows-per-file", seed],
        "score": ["score", "--data", source, "--model", CHECKPOINT, "--out", out, "--workers", 1,
                  "--prepare-workers", 1, "--max-length", 1000 + seed],
        "select": ["select", "--scores", source, "--out", out, "--seed", seed],
        "train": ["train", "--model", CHECKPOINT, *chosen, "--out", out, "--max-steps", 2, "--global-batch", 4,
                  "--seed", seed],
        "export": ["export", "--run", out, "--out", out / "exported"],
        "export-data": ["export-data", *chosen, "--out", out / "out.jsonl",
                        "--format", "messages" if seed == 42 else "sharegpt", "--samples-only"],
        "report": ["report", "--scores", source, "--out", out / "report.html", "--seed", seed],
        "demo": ["demo", "--out", out, "--samples", 20, "--seed", seed],
    }  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_a_foreign_file_where_a_verb_writes_stops_it(
    selected: Path, tmp_path: Path, name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without --overwrite, in one line, before it does anything."""
    planted = plant(tmp_path / "out", name)
    place = name.partition("/")[0].removesuffix(".stage.json")
    of = {"samples": "import", "scores": "score", "selection": "select", "training": "train", "model": "train",
          "out.jsonl": "export-data", "out.jsonl.images": "export-data", "exported": "export",
          "data": "demo"}  # fmt: skip
    verb = of.get(place, "report")
    words = verbs(selected, tmp_path / "out")[verb]
    if verb == "export":
        words[2] = request.getfixturevalue("trained")
    for more in ([], *([["--overwrite"]] if verb in ("import", "score", "select", "train", "export-data") else [])):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words), *more])
        assert ended.value.code == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert name.rpartition("/")[2] in told or "exists and is no report's" in told
        assert files(tmp_path / "out") == planted


@pytest.fixture(scope="module")
def trained(selected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run without Ray. Not to be changed."""
    from tests.training.runs import alone, left_by, setup_of

    out = tmp_path_factory.mktemp("trained")
    return left_by(alone(setup_of(selected, max_steps=1), out / "training" / "checkpoints"), out)


@pytest.mark.long
def test_foreign_files_around_outputs_stay(
    selected: Path,
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every verb, killed just before its end, run again, and replaced by one with other options."""
    out = tmp_path / "out"
    planted = plant(out, *AROUND)
    monkeypatch.chdir(tmp_path)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for verb, words in verbs(selected, out).items():
        if verb == "demo":  # it has samples/ and scores/ of its own, here in a relative path
            words = verbs(selected, Path("out2"))[verb]
            planted_there = plant(tmp_path / "out2", *AROUND)
        with monkeypatch.context() as patch:
            patch.setattr(Claim, "commit", killed)
            with pytest.raises(SystemExit) as ended:
                main([str(word) for word in words])
            assert ended.value.code == 130, verb
        assert untouched(out, planted), verb
        vig(*words)
        assert untouched(out, planted), verb
    # The killed run's files are gone or gone on with: what is there now is one run's.
    for directory in ("samples", "scores", "selection"):
        (run,) = (read_stage(str(out / directory)) or {})["runs"]
        assert all(path.name.startswith(run) for path in (out / directory).iterdir())
        assert list((out / directory).iterdir())
    capsys.readouterr()
    vig(*verbs(selected, tmp_path / "out2")["demo"])
    assert "already complete" in capsys.readouterr().err
    before = files(out)
    for verb, words in verbs(selected, out).items():  # again: nothing to do
        if verb not in ("report", "demo"):
            vig(*words)
    unchanged = files(out)
    assert {name: unchanged[name] for name in unchanged if not name.startswith("report")} == {
        name: before[name] for name in before if not name.startswith("report")
    }
    for verb, words in verbs(selected, out, seed=43).items():
        if verb in ("import", "score", "select", "train", "export-data"):
            vig(*words, "--overwrite")
    vig(*verbs(selected, tmp_path / "out2", seed=43)["demo"])
    assert untouched(out, planted)
    assert untouched(tmp_path / "out2", planted_there)
    assert not [name for name in files(out) if name in before and name.endswith(".parquet") and name not in planted]
    assert not list(out.glob(".*-????????"))


ANY_NAME = (
    "notes.txt", "stage.json", "config.json", "part-00000.parquet", "log.jsonl", ".hidden", "a b.png", "[x]*.txt",
    "ä.json", "deep/er/x.parquet", "commit.json", "run.json", "0.parquet.tmp",
)  # fmt: skip
ANY_FOLDER = ("", "mine", "samples-old", "scores.bak", "trained", "..", "../beside/scores", ".cache", "figures")
OF_A_STAGE = ("samples", "scores", "selection", "training", "model", "exported", "out.jsonl.images", "data")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(int(os.environ.get("VIG_TEST_TREES", "3"))))
def test_any_files_stay_whenever_a_verb_is_killed(selected: Path, tmp_path: Path, seed: int) -> None:
    """Files at random in and around OUT; every verb as a program, killed at any moment and given again, with and
    without --overwrite. Where one of them lies in a stage's own folder, that stage refuses."""
    rng = random.Random(seed)
    out = tmp_path / "work" / "out"
    out.mkdir(parents=True)
    planted: dict[str, bytes] = {}

    def plant_some(folders: Sequence[str], count: int) -> None:
        for _ in range(count):
            name = os.path.normpath(f"{rng.choice(folders) or '.'}/{rng.choice(ANY_NAME)}")
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(rng.randrange(100)))
            planted[name] = path.read_bytes()

    plant_some(ANY_FOLDER, 12)
    refusing = rng.sample(OF_A_STAGE, 2)
    plant_some(refusing, 2)
    statuses = Counter[int]()
    for options in (42, 43):  # the second time with other options
        for verb, words in verbs(selected, out, seed=options).items():
            if verb == "demo":  # its data lies where the stages' outputs are
                continue
            if verb == "export" and not (out / "training.stage.json").exists():
                continue
            overwrite = ["--overwrite"] * (verb in ("import", "score", "select", "train", "export-data"))
            line = [sys.executable, "-m", "vig_ray.cli", *map(str, words), *(overwrite if options == 43 else [])]
            killed = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                killed.wait(rng.uniform(2, 12))
            killed.kill()
            killed.wait()
            assert untouched(out, planted), verb
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
            assert untouched(out, planted), verb
            assert done.returncode in (0, 2), done.stderr
            if done.returncode == 2:
                assert "Traceback" not in done.stderr
                assert verb == "export" or "was not written by" in done.stderr or "exist" in done.stderr, done.stderr
            statuses[done.returncode] += 1
    assert statuses[0] >= 6
    assert statuses[2] >= 1


@pytest.mark.long
def test_relative_paths_are_the_same_run_as_absolute_ones(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every path option of every verb (demo's above), from another folder than Ray's workers are in."""
    world.write(str(tmp_path / "data"), SAMPLES, 7)
    (tmp_path / "data" / "data.json").rename(tmp_path / "set.json")
    (tmp_path / "model").symlink_to(CHECKPOINT)
    monkeypatch.chdir(tmp_path)

    def both(*words: object, complete: bool = True) -> None:
        """With relative paths, and again with absolute ones, which must find the work done."""
        vig(*words)
        capsys.readouterr()
        paths = [str(tmp_path / str(word)) if isinstance(word, Path) else word for word in words]
        vig(*paths)
        assert ("already complete" in capsys.readouterr().err) == complete, words

    one_cpu = ("--workers", 1, "--prepare-workers", 1)
    both("import", "--data", Path("set.json"), "--images", Path("data"), "--out", Path("run"), complete=False)
    both("score", "--data", Path("run"), "--model", Path("model"), "--out", Path("run"), *one_cpu)
    both("score", "--data", Path("run/samples"), "--model", Path("./model/"), "--out", Path("run"), *one_cpu)
    both("score", "--data", Path("set.json"), "--images", Path("data"), "--model", Path("model"), "--out",
         Path("again"), *one_cpu)  # fmt: skip
    both("select", "--scores", Path("run"), "--out", Path("run"), "--strategy", "visnec", "--clusters", 2, "--r", 90,
         "--samples", Path("run"), "--embedding-model", "words")  # fmt: skip
    both("train", "--model", Path("model"), "--samples", Path("run/samples"), "--selection", Path("run/selection"),
         "--out", Path("run"), "--max-steps", 2, "--global-batch", 4)  # fmt: skip
    both("export", "--run", Path("run"), "--out", Path("exported"))
    both("export-data", "--selection", Path("run"), "--samples", Path("run"), "--model", Path("model"), "--images",
         Path("data"), "--out", Path("out.jsonl"))  # fmt: skip
    both("report", "--scores", Path("run/scores"), "--selection", Path("run/selection"), "--samples", Path("run"),
         "--model", Path("model"), "--out", Path("r.html"), complete=False)  # fmt: skip
    both("top", "--scores", Path("run"), "--samples", Path("run"), complete=False)
    both("compare", Path("run"), Path("again/scores"), complete=False)
    both("inspect", "set/0000000000", "--scores", Path("run"), "--samples", Path("run/samples"), "--model",
         Path("model"), complete=False)  # fmt: skip
    monkeypatch.chdir(tmp_path / "run" / "scores")
    vig("report", "--scores", ".", "--out", "../../from-within.html", "--no-figures")
    capsys.readouterr()
    assert "No samples" not in (tmp_path / "from-within.html").read_text()
    monkeypatch.chdir(tmp_path)
    record = importing.run(ImportConfig(data="set.json", images="data", out="run"))
    assert record.read == SAMPLES
