"""The life cycle of an output: what a claim decides, and that nothing foreign is ever written over or deleted."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from vig_ray import stage
from vig_ray.errors import StageError
from vig_ray.stage import Claim, StageConfig, claim, parquet_files, read_stage, write_stage
from vig_ray.storage import filesystem, join, list_files, read_bytes, write_bytes
from vig_ray.whole_files import whole_files

FOLDERS = ("scores", "model")
ROWS = pa.table({"number": [1, 2, 3]})


class Config(StageConfig):
    number: int = 3


def claimed(out: str, number: int = 1, names: str = "", **options: Any) -> Claim:
    """A claim; with `names` ("a,b"), of a stage whose finished runs get what they lack of these."""
    identity: dict[str, Any] = {"options": {"number": number}}
    if names:
        identity |= {"passes": [{"name": name, "of": 1} for name in names.split(",")], "engine": None}
        options |= {"grows": "passes", "left_open": ("engine",)}
    return claim(join(out, "scores"), "score", identity, folders=FOLDERS, **options)


def steps(output: Claim) -> Iterator[None]:
    """A run from its beginning to its end; it can be left, as by a kill, wherever it yields."""
    fs, path = filesystem(output.directory)
    output.begin(Config())
    yield
    fs.create_dir(path, recursive=True)
    for part in range(2):
        pq.write_table(ROWS, f"{path}/{output.run}-{part}.parquet", filesystem=fs)
        write_bytes(join(output.work, "checkpoint", f"{part}"), b"")
        yield
    with tempfile.TemporaryDirectory(dir=_near(output)) as made:
        Path(made, "model").mkdir()
        for name in ("config.json", "model.safetensors"):
            Path(made, "model", name).write_text(output.run)
        output.publish(str(Path(made, "model")), "model")
    yield
    output.commit(Config())


def _near(output: Claim) -> str | None:
    if output.work.startswith("s3://"):
        return None
    Path(output.work).mkdir(parents=True, exist_ok=True)
    return output.work


def run(output: Claim, *, killed_after: int | None = None) -> str:
    """Run `steps` to the end, or leave it after so many; returns the run id."""
    for number, _ in enumerate(steps(output)):
        if number == killed_after:
            break
    return output.run


def files(out: str) -> list[str]:
    return list_files(out)


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    client = request.getfixturevalue("s3")()
    client.create_bucket(Bucket="cycle")
    return f"s3://cycle/{tmp_path.name}"


def test_a_run_from_beginning_to_end(out: str) -> None:
    first = claimed(out)
    assert first.state == "new"
    identifier = run(first)
    parts = [f"scores/{identifier}-{part}.parquet" for part in range(2)]
    assert files(out) == ["model/config.json", "model/model.safetensors", "scores.stage.json", *parts]
    record = read_stage(join(out, "scores")) or {}
    assert (record["complete"], record["run"], record["runs"]) == (True, identifier, [identifier])
    assert record["files"] == ["model/config.json", "model/model.safetensors"]
    for overwrite in (False, True):
        again = claimed(out, overwrite=overwrite)
        assert again.complete
        assert again.run == identifier
    assert len(parquet_files(join(out, "scores"))) == 2


@pytest.mark.parametrize("killed_after", range(4))
def test_a_killed_run_goes_on_under_its_id(out: str, killed_after: int) -> None:
    identifier = run(claimed(out), killed_after=killed_after)
    for overwrite in (False, True):  # --overwrite doesn't begin a running job's work anew
        again = claimed(out, overwrite=overwrite)
        assert (again.state, again.run) == ("go on", identifier)
    run(again)
    assert claimed(out).complete
    assert {name.rpartition("/")[2].partition("-")[0] for name in files(out) if "scores/" in name} == {identifier}


@pytest.mark.parametrize("killed_after", range(4))
def test_another_run_is_replaced_when_asked_and_its_files_only(out: str, killed_after: int) -> None:
    earlier = run(claimed(out))
    with pytest.raises(StageError, match=r"holds another run of `vig score` \(number differ\); .*--overwrite"):
        claimed(out, 2, overwrite=False)
    before = files(out)
    replacing = claimed(out, 2, overwrite=True)
    assert files(out) == before  # a claim only looks
    run(replacing, killed_after=killed_after)
    assert not any(earlier in name for name in files(out))
    again = claimed(out, 2)
    assert (again.state, again.run) == ("go on", replacing.run)
    run(again)
    assert claimed(out, 2).complete
    with pytest.raises(StageError, match="number differ"):
        claimed(out, 1)


def test_a_kill_in_the_middle_of_replacing_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path)
    earlier = run(claimed(out))
    monkeypatch.setattr(stage, "delete_owned", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        claimed(out, 2, overwrite=True).begin(Config())
    monkeypatch.undo()
    assert (tmp_path / "model" / "config.json").exists()
    assert parquet_files(join(out, "scores")) == []  # the rows of the earlier run aren't this one's
    run(claimed(out, 2))
    assert not any(earlier in name for name in files(out))
    assert (tmp_path / "model" / "config.json").read_text() == claimed(out, 2).run


def test_a_run_that_cannot_go_on_begins_anew(out: str) -> None:
    killed = run(claimed(out, resumes=False), killed_after=2)
    again = claimed(out, resumes=False)
    assert again.state == "replace"
    run(again)
    assert not any(killed in name for name in files(out))
    assert claimed(out, resumes=False).complete


def test_a_run_that_left_nothing_is_in_nobodys_way(out: str) -> None:
    """An engine that couldn't start, say: the next command may name another."""
    run(claimed(out), killed_after=0)
    assert claimed(out, 2).state == "replace"
    run(claimed(out), killed_after=1)
    with pytest.raises(StageError, match="number differ"):
        claimed(out, 2)


def test_what_is_left_open_is_the_earlier_runs(tmp_path: Path) -> None:
    directory = str(tmp_path / "scores")
    begun = claim(directory, "score", {"engine": None, "dtype": None}, left_open=("engine", "dtype"))
    begun.begin(Config(), identity={"engine": "torch", "dtype": "float32"})
    write_bytes(f"{directory}/{begun.run}-0.parquet", b"")

    def state(engine: str | None, dtype: str | None) -> str:
        return claim(directory, "score", {"engine": engine, "dtype": dtype}, left_open=("engine", "dtype")).state

    assert state(None, None) == state("torch", None) == state("torch", "float32") == "go on"
    with pytest.raises(StageError, match=r"\(engine differ\)"):
        state("vllm", None)


def rows_of(output: Claim, *, parts: int = 1) -> None:
    fs, path = filesystem(output.directory)
    fs.create_dir(path, recursive=True)
    for part in range(parts):
        pq.write_table(ROWS, f"{path}/{output.run}-{part}.parquet", filesystem=fs)
    write_bytes(join(output.work, "checkpoint", "0"), b"")


def finished(out: str, names: str = "a") -> str:
    """A finished run with these passes; its id."""
    first = claimed(out, names=names)
    first.begin(Config(), identity=first.identity | {"engine": "torch"})
    rows_of(first, parts=2)
    first.commit(Config())
    return first.run


def runs_seen(out: str) -> set[str]:
    return {path.rpartition("/")[2].partition("-")[0] for path in parquet_files(join(out, "scores"))}


def test_an_extension_takes_the_place_of_what_it_extends_when_it_is_committed(out: str) -> None:
    first = finished(out)
    extension = claimed(out, names="b")
    assert extension.state == "extend"
    assert [each["name"] for each in extension.identity["passes"]] == ["a", "b"]
    assert extension.identity["engine"] == "torch"  # left open, so that of the earlier run
    extension.begin(Config(), identity={"other": 1})
    rows_of(extension)
    assert runs_seen(out) == {first}
    assert (len(extension.paths), claimed(out, names="a").complete) == (1, True)
    extension.commit(Config(), counts=3)
    record = read_stage(join(out, "scores")) or {}
    assert (record["run"], record["runs"], record["counts"]) == (extension.run, [extension.run], 3)
    assert record["identity"] == extension.identity
    assert runs_seen(out) == {extension.run}
    assert not any(first in name or ".score-" in name for name in files(out))
    assert all(claimed(out, names=names).complete for names in ("a", "b", "b,a", "a,b"))
    assert claimed(out, names="b,c").state == "extend"
    run(claimed(out, 2, overwrite=True))
    assert not any(extension.run in name for name in files(out))


def test_a_killed_extension_goes_on_and_what_it_extends_stays(out: str) -> None:
    first = finished(out)
    killed = claimed(out, names="a,b")
    killed.begin(Config())
    rows_of(killed)
    again = claimed(out, names="b")
    assert again.run == killed.run
    again.begin(Config())
    assert len(again.paths) == 1  # what it had written is there
    other = claimed(out, names="c")
    assert (other.state, other.run == killed.run) == ("extend", False)
    assert claimed(out, names="b").run == killed.run  # a claim only looks
    other.begin(Config())
    assert not any(killed.run in name for name in files(out))
    assert runs_seen(out) == {first}
    with pytest.raises(StageError, match="replaced this run meanwhile"):
        again.commit(Config())
    rows_of(other)
    other.commit(Config())
    assert runs_seen(out) == {other.run}


def test_an_extension_killed_before_the_earlier_files_are_gone(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = finished(out)
    extension = claimed(out, names="b")
    extension.begin(Config())
    rows_of(extension)
    monkeypatch.setattr(stage, "delete_owned", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extension.commit(Config())
    monkeypatch.undo()
    assert any(first in name for name in files(out))
    assert runs_seen(out) == {extension.run}
    assert claimed(out, names="a,b").complete
    assert not any(first in name or ".score-" in name for name in files(out))


def test_what_cannot_be_extended(out: str) -> None:
    unfinished = claimed(out, names="a,b")
    unfinished.begin(Config())
    rows_of(unfinished)
    assert claimed(out, names="a,b").state == "go on"
    for names in ("a", "b,a", "a,b,c"):
        with pytest.raises(
            StageError, match=r"unfinished run of `vig score` with the passes a,b; finish it with the co"
        ):
            claimed(out, names=names)
    unfinished.commit(Config())
    with pytest.raises(StageError, match=r"\(number differ\); choose"):
        claimed(out, 2, names="c", overwrite=False)
    with pytest.raises(StageError, match=r"\(number; passes differ\); choose"):
        claim(join(out, "scores"), "score", {"options": {"number": 2}, "passes": [{"name": "a", "of": 2}]},
              folders=FOLDERS, overwrite=False, grows="passes")  # fmt: skip
    assert claimed(out, names="a,c", overwrite=True).state == "extend"
    assert claimed(out, names="a", overwrite=True).complete
    assert claimed(out, names="b", overwrite=True).state == "replace"  # it would not be what was asked for: b first


def test_a_run_that_was_replaced_cannot_commit(tmp_path: Path) -> None:
    slow = claimed(str(tmp_path))
    slow.begin(Config())
    run(claimed(str(tmp_path), 2, overwrite=True))
    with pytest.raises(StageError, match="replaced this run meanwhile"):
        slow.commit(Config())
    with pytest.raises(StageError, match="replaced this run meanwhile"):
        slow.publish(str(tmp_path), "model")


def test_what_came_meanwhile_is_not_published_over(out: str) -> None:
    output = claimed(out)
    output.begin(Config())
    write_bytes(join(out, "model", "config.json"), b"mine")
    with pytest.raises(StageError, match=r"model/config\.json: not written by this run; move it away"):
        run(output)
    assert read_bytes(join(out, "model", "config.json")) == b"mine"


def test_records_of_earlier_versions_are_read_and_their_directories_refused(out: str) -> None:
    old = {"stage": "score", "complete": True, "config": {}, "identity": {"options": {"number": 1}}}
    write_bytes(join(out, "scores", "stage.json"), json.dumps(old).encode())
    write_bytes(join(out, "scores", "0.parquet"), b"")
    assert read_stage(join(out, "scores")) == old
    assert len(parquet_files(join(out, "scores"))) == 1
    for options in ({}, {"number": 2}, {"overwrite": True}, {"names": "a"}):
        with pytest.raises(StageError, match=r"written by an earlier version.*choose another --out, or delete it"):
            claimed(out, **options)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"stage": 3}'])
@pytest.mark.parametrize("where", ["scores.stage.json", "scores/stage.json"])
def test_a_record_that_is_none_is_refused(tmp_path: Path, content: str, where: str) -> None:
    write_bytes(str(tmp_path / where), content.encode())
    for decide in (claimed, lambda out: read_stage(join(out, "scores"))):
        with pytest.raises(StageError, match=rf"{where}: not .*; move it away, or choose another --out"):
            decide(str(tmp_path))
    assert (tmp_path / where).read_text() == content


def test_the_output_of_another_stage_is_refused(tmp_path: Path) -> None:
    write_stage(str(tmp_path / "scores"), "select", Config(), complete=True)
    for overwrite in (False, True):
        with pytest.raises(StageError, match="holds the output of 'vig select'"):
            claimed(str(tmp_path), overwrite=overwrite)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(StageError, match="model was not written by `vig score`"):
        claimed(str(tmp_path), overwrite=True)


NAMES = st.sampled_from(
    ["notes.txt", "part-00000.parquet", "0.parquet", "stage.json", "scores.stage.json", "config.json", ".DS_Store",
     "model.safetensors", "log.jsonl", "scores.stage.json.tmp", "3f9a12bc-00000.parquet", ".score-3f9a12bc"]
)  # fmt: skip
PLACES = st.sampled_from(
    ["", "scores", "model", "selection", "samples", "training", "training/checkpoints", "adapter", "../other",
     "scores/deep/er", "scores-old", "model.unfinished"]
)  # fmt: skip
TREES = st.dictionaries(st.tuples(PLACES, NAMES), st.binary(max_size=8), min_size=1, max_size=5)


def plant(out: Path, tree: dict[tuple[str, str], bytes]) -> dict[Path, bytes]:
    """Write foreign files, those that nothing is in the way of; what lies where."""
    planted = {}
    for (place, name), content in tree.items():
        path = out / place / name
        if not path.exists() and all(not parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            planted[path] = content
    return planted


@settings(max_examples=300)
@given(
    tree=TREES,
    calls=st.lists(
        st.tuples(st.integers(1, 2), st.booleans(), st.booleans(), st.none() | st.integers(0, 4)),
        min_size=1,
        max_size=4,
    ),
    planted_after=st.integers(0, 3),
)
def test_foreign_files_stay_as_they_are(
    tree: dict[tuple[str, str], bytes], calls: list[tuple[int, bool, bool, int | None]], planted_after: int
) -> None:
    """Whatever runs come, in whichever order, overwriting or not, finished or killed, before and after the files."""
    folder = Path(tempfile.mkdtemp())
    try:
        out = folder / "out"
        planted: dict[Path, bytes] = {}
        for number, (identity, overwrite, resumes, killed_after) in enumerate(calls):
            if number == min(planted_after, len(calls) - 1):
                planted = plant(out, tree)
            with contextlib.suppress(StageError):
                output = claimed(str(out), identity, overwrite=overwrite, resumes=resumes)
                if not output.complete:
                    run(output, killed_after=killed_after)
            assert {path: path.read_bytes() for path in planted} == planted
    finally:
        shutil.rmtree(folder)


def test_a_file_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    """What reads a directory while Parquet is written into it sees whole files only."""
    (tmp_path / "scores").mkdir()
    fs, path = pickle.loads(pickle.dumps(whole_files(str(tmp_path / "scores"), str(tmp_path / ".work"))))
    with pq.ParquetWriter(f"{path}/0.parquet", ROWS.schema, filesystem=fs) as writer:
        writer.write_table(ROWS)
        assert list((tmp_path / "scores").iterdir()) == []
        assert len(list((tmp_path / ".work").iterdir())) == 1
    assert pq.read_table(tmp_path / "scores") == ROWS
    assert list((tmp_path / ".work").iterdir()) == []
