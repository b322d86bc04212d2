"""The client and `vig score --server` against the real application: numbers, rows, what is refused and gone on with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.serving.conftest import base64_of, png
from tests.serving.http_server import Served
from vig_ray import cli
from vig_ray.client import Client, Failed, ModelInfo, Score, ServerError, TextOnly
from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.importing import run as import_data
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.scoring import by_server, job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.stage import read_stage

SAMPLES = 24
QUESTION, ANSWER = "What is on the left?", "A red circle is on the left."


@pytest.fixture(scope="module")
def serve(engine: Any, demo_formatter: Any) -> Iterator[Callable[..., Served]]:
    """An application with these options; one for all tests that ask for the same."""
    running: dict[str, Served] = {}

    def make(**options: Any) -> Served:
        return running.setdefault(repr(options), Served(engine, demo_formatter, **options))

    yield make
    for served in running.values():
        served.stop()


def sample(image: Any, **more: Any) -> dict[str, Any]:
    return {"question": QUESTION, "answer": ANSWER, "image": image} | more


def test_the_client_gives_the_server_s_numbers(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve()
    asked = httpx.post(f"{served.url}/v1/score", json=sample(base64_of(png())))
    path = tmp_path / "a.png"
    path.write_bytes(png())
    picture = Image.open(io.BytesIO(png()))
    with Client(served.url) as client:
        score = client.score(sample(path))
        assert json.loads(score.model_dump_json()) == asked.json()
        assert client.score(sample(picture), tau=-100.0, reference_images=True).kept
        assert client.model().model_dump().items() <= httpx.get(f"{served.url}/v1/model").json().items()
        given = [sample(png(number % 3), answer=f"{number}") for number in range(40)]
        given[7] = {"question": "?"}
        given[8] = sample(b"no image")
        given[9] = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes."}]}
        given[10] = given[9] | {"text_only": True}
        many = list(client.score_many(given))
        for start in (0, 20):
            for one, other in zip(client.score_batch(given[start : start + 20]), many[start:], strict=False):
                assert type(one) is type(other)
                if isinstance(one, Score) and isinstance(other, Score):
                    assert one.vig == pytest.approx(other.vig, abs=1e-5)
        streamed = list(client.stream((each | {"id": str(number)} for number, each in enumerate(given)), window=8))
        alone = [client.score(each).vig for each in given[:3]]
    assert [type(outcome) for outcome in streamed] == [type(outcome) for outcome in many]
    for one, other in zip(streamed, many, strict=True):
        if isinstance(one, Score) and isinstance(other, Score):
            assert one.vig == pytest.approx(other.vig, abs=1e-5)
        else:
            assert one == other
    assert [outcome.vig for outcome in many[:3] if isinstance(outcome, Score)] == pytest.approx(alone, abs=1e-5)
    kinds = [outcome.kind if isinstance(outcome, Failed) else "" for outcome in many[7:10]]
    assert kinds == ["Invalid", "UnidentifiedImageError", "NoImage"]
    assert isinstance(many[10], TextOnly)
    assert sum(isinstance(outcome, Score) for outcome in many) == 36


def test_limits_of_a_request_are_kept_and_of_all_samples_together_found(serve: Callable[..., Served]) -> None:
    """64 x 64 pixels a padded image: four of them are within the limit of a request, which the client isn't told to
    count."""
    served = serve(max_items=6, max_request_pixels=4 * 64 * 64, max_body_mb=0.1, queue=4)
    given = [sample(png(number)) for number in range(13)]
    given[5] = sample(np.random.default_rng(0).bytes(200_000))
    with Client(served.url) as client:
        outcomes = list(client.score_many(given))
    assert [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, Score)] == [5]
    assert isinstance(outcomes[5], Failed)
    assert outcomes[5].kind == "TooLarge"


def test_keys(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(keys="secret")
    with Client(served.url) as client, pytest.raises(ServerError, match="401 Key"):
        client.model()
    with Client(served.url, key="secret") as client:
        assert isinstance(client.model(), ModelInfo)
    key = tmp_path / "key"
    options = {"server": served.url, "data": "d", "out": "o"}
    for text, message in (("", "holds 0"), ("a\nb\n", "holds 2")):
        key.write_text(text)
        with pytest.raises(StageError, match=f"--server-key .*: {message} lines with a key"):
            by_server.model_of(ScoreConfig(**options, server_key=str(key)))
    key.write_text("# of the server\nsecret\n")
    assert by_server.model_of(ScoreConfig(**options, server_key=str(key))).name == "demo"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Samples with and without images, rows that failed at the import, images that are gone and images in bytes."""
    folder = tmp_path_factory.mktemp("world")
    path = world.write(str(folder), SAMPLES, 5)
    rows = json.loads(Path(path).read_text())
    pictures = [number for number, row in enumerate(rows) if "image" in row]
    rows[pictures[3]]["image"] = "images/gone.png"
    rows[pictures[4]]["conversations"] = []
    turns = rows[pictures[5]]["conversations"]
    turns[0]["value"] = "  <image>\n\n" + turns[0]["value"].replace("<image>", "").strip() + "  \n"
    turns[1]["value"] += "\n "
    rows[pictures[6]]["conversations"][1]["value"] = "word " * 200  # more answer tokens than the server takes below
    rows[0]["id"] = "of its own"
    Path(path).write_text(json.dumps(rows))
    import_data(ImportConfig(data=path, out=str(folder), keep="id"))
    return str(folder / "samples")


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    found = [row for path in sorted((out / "scores").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["sample_key"] for row in found}) == len(found)
    return {row["sample_key"]: row for row in found}


@pytest.fixture(scope="module")
def by_job(samples: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("job")
    job.run(ScoreConfig(data=samples, model=CHECKPOINT, out=str(out)), in_process=True)
    return out


def test_the_rows_are_those_of_the_batch_job(
    serve: Callable[..., Served], samples: str, by_job: Path, tmp_path: Path
) -> None:
    summary = job.run(ScoreConfig(data=samples, server=serve().url, out=str(tmp_path), rows_per_file=10))
    expected, found = rows_of(by_job), rows_of(tmp_path)
    assert list(found) == list(expected)
    assert {row["error"] is None for row in found.values()} == {True, False}
    assert any(row["token_ids"] and row["vig"] is None for row in found.values())  # text-only
    for key, row in found.items():
        for name, value in row.items():
            there = expected[key][name]
            if value is None or not (name.endswith(("loss", "logprobs")) or name == "vig"):
                assert value == there, (key, name)
            else:
                np.testing.assert_allclose(value, there, atol=1e-5, err_msg=name)
    files = sorted((tmp_path / "scores").glob("*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in files] == [10, 10, 4]
    theirs = next((by_job / "scores").glob("*.parquet"))
    assert pq.read_schema(files[0]) == pq.read_schema(theirs)
    ours, of_job = read_stage(str(tmp_path / "scores")), read_stage(str(by_job / "scores"))
    assert ours is not None
    assert of_job is not None
    assert ours["counts"] == of_job["counts"] == summary.counts()
    assert ours["kept"] == of_job["kept"]
    assert ours["identity"]["samples"] == of_job["identity"]["samples"]
    assert ours["identity"]["references"] == of_job["identity"]["references"]
    assert (ours["config"]["model"], ours["server"]["fingerprint"]) == ("demo", "f" * 16)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_run_goes_on_where_it_was_and_with_the_same_model_only(
    serve: Callable[..., Served], samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, options = serve(), {"data": samples, "out": str(tmp_path), "rows_per_file": 4}
    scored, rows = by_server._scored, []

    def counted(row: Any, *more: Any) -> dict[str, Any]:
        rows.append(row["sample_key"])
        if len(rows) == 11:
            raise KeyboardInterrupt
        return scored(row, *more)

    monkeypatch.setattr(by_server, "_scored", counted)
    with pytest.raises(KeyboardInterrupt):
        job.run(ScoreConfig(server=served.url, **options))
    assert len(rows_of(tmp_path)) == 10
    with pytest.raises(StageError, match=r"reference.* differ"):
        job.run(ScoreConfig(server=serve(reference="blind").url, **options))
    with pytest.raises(StageError, match=r"model.* differ"):
        job.run(ScoreConfig(model=CHECKPOINT, **options), in_process=True)
    with pytest.raises(StageError, match=r"--reference blind: --server .*: reference: this server has blur"):
        job.run(ScoreConfig(server=served.url, reference="blind", **options))
    # Started anew, the server describes its engine otherwise.
    described = by_server.model_of(ScoreConfig(server=served.url, **options)).model_copy(update={"engine": "torch 9"})
    with monkeypatch.context() as patch:
        patch.setattr(by_server, "model_of", lambda config: described)
        assert job.run(ScoreConfig(server=served.url, **options)).read == SAMPLES
    assert len(rows) == SAMPLES + 1
    assert job.run(ScoreConfig(server=served.url, **options)).read == SAMPLES  # complete: nothing is asked
    assert len(rows) == SAMPLES + 1
    replaced = job.run(ScoreConfig(server=serve(reference="blind").url, overwrite=True, **options))
    assert list(replaced.references) == ["blind"]


def test_a_reference_of_several_is_chosen(
    serve: Callable[..., Served], samples: str, by_job: Path, tmp_path: Path
) -> None:
    served = serve(reference="blind,blur")
    options = {"data": samples, "server": served.url, "server_model": "demo", "reference": "blur"}
    job.run(ScoreConfig(**options, out=str(tmp_path)))
    expected = rows_of(by_job)
    for key, row in rows_of(tmp_path).items():
        assert row["vig"] == (expected[key]["vig"] and pytest.approx(expected[key]["vig"], abs=1e-5))
    with pytest.raises(StageError, match=r"--server-model other.*: model: this server has demo"):
        job.run(ScoreConfig(data=samples, server=served.url, server_model="other", out=str(tmp_path / "no")))


@pytest.mark.parametrize(
    "changed", [{"fingerprint": "e" * 16}, {"vllm": {"quantization": "fp8"}}, {"max_answer_tokens": 7},
                {"reference_parameters": {"sigma": 3}}],
)  # fmt: skip
def test_a_server_that_changes_in_the_middle_ends_the_run_and_its_refusals_are_not_kept(
    serve: Callable[..., Served], samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Any
) -> None:
    """The other server takes over after ten samples, and refuses long answers."""
    served, scored, asked = serve(max_answer_tokens=100), by_server._scored, []
    info = by_server.model_of(ScoreConfig(data="d", out="o", server=served.url))
    now = [info]
    monkeypatch.setattr(by_server, "_model", lambda *_: now[0])

    def replaced(row: Any, outcome: Any, *more: Any) -> dict[str, Any]:
        asked.append(outcome)
        if len(asked) == 10:
            now[0] = info.model_copy(update=changed)
        return scored(row, outcome, *more)

    monkeypatch.setattr(by_server, "_scored", replaced)
    with pytest.raises(StageError, match="answers otherwise"):
        job.run(ScoreConfig(data=samples, server=served.url, out=str(tmp_path)))
    rows = rows_of(tmp_path).values()
    assert any(isinstance(outcome, Failed) and outcome.kind == "TooLong" for outcome in asked)
    assert rows
    assert not [row for row in rows if (row["error"] or "").startswith("TooLong")]


@pytest.mark.parametrize("changed", [{"fingerprint": "e" * 16}, {"reference_parameters": {"sigma": 3}}])
def test_a_score_by_anything_else_than_the_run_began_with_is_refused(
    serve: Callable[..., Served], changed: Any, tmp_path: Path
) -> None:
    served = serve()
    info = by_server.model_of(ScoreConfig(data="d", out="o", server=served.url))
    row = {"sample_key": "k", "id": "i", "source": "s", "kept": None, "error": None}
    with Client(served.url) as client:
        score = client.score(sample(png()))
    assert by_server._scored(row, score, info)["vig"] is not None
    with pytest.raises(StageError, match="answers otherwise"):
        by_server._scored(row, score, info.model_copy(update=changed))


def test_the_command(
    serve: Callable[..., Served], samples: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve(max_answer_tokens=100)

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            cli.main(["score", "--data", samples, "--out", str(tmp_path), *arguments])
        assert isinstance(end.value.code, int)
        return end.value.code

    for option, value in (("--model", "m"), ("--engine", "torch"), ("--workers", "2"), ("--vllm", "a=1")):
        assert run("--server", served.url, option, value) == 2
        assert f"{option}: with --server, the server decides that; leave it out" in capsys.readouterr().err
    assert run() == 2
    assert "--model is required" in capsys.readouterr().err
    assert run("--model", "m", "--server-key", "file") == 2
    assert "--server-key has no effect without --server" in capsys.readouterr().err
    assert run("--server", "http://127.0.0.1:9/nothing") == 2
    assert "http://127.0.0.1:9/nothing" in capsys.readouterr().err
    assert run("--server", served.url, "--strict") == 1
    told = capsys.readouterr()
    assert "failed 1: TooLong" in told.out
    assert "read 24 = scored " in told.out
