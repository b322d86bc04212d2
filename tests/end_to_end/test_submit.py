"""Jobs of a real cluster: scored, selected, trained; stopped and gone on with; and wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import gates as gating
from tests.end_to_end.conftest import ROOT, read_scores, vig
from tests.end_to_end.head import Head
from tests.end_to_end.server import wait_until
from tests.gates import Gates
from tests.image_store import hold_images, image_store
from tests.selection.made import selected
from tests.study import made as made_study
from vig_ray.demo import CHECKPOINT, world

pytestmark = pytest.mark.cluster

BATCH = 32


@pytest.fixture(scope="module")
def cluster(ray_head: Head) -> Head:
    return ray_head


@pytest.fixture(scope="module")
def scored(cluster: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo samples, scored by a job that was stopped after five batches and submitted again."""
    out = gating.write_world(tmp_path_factory.mktemp("submitted"))
    gates = Gates(out / "gates")
    gates.close(5)
    words = ["submit", "score", "--address", cluster.dashboard, "--data", str(out), "--model", CHECKPOINT,
             "--out", str(out), "--rows-per-file", str(BATCH), "--workers", "1", "--prepare-workers", "1",
             *gating.ENGINE]  # fmt: skip
    words += [word for name, value in gates.environment.items() for word in ("--env", f"{name}={value}")]
    named = vig(*words, "--no-follow").stdout.strip()
    assert named.startswith("vig-score-")
    # The same work again is the same job, which goes on when nobody follows it any more.
    follower = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert follower.stdout is not None
    assert follower.stdout.readline()  # of the job's log: it follows
    gates.wait_for(5)
    wait_until(lambda: gating.committed_rows(out) == 5 * BATCH)
    # What Prometheus would see by then.
    wait_until(lambda: cluster.measured("ray_vig_score_rows_total") == 5 * BATCH)
    wait_until(lambda: (cluster.measured("ray_vig_score_tokens_total") or 0) > 5 * BATCH)
    assert cluster.measured("ray_vig_score_engine_starts_total") == 1
    follower.send_signal(signal.SIGINT)
    _, told = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert f"{named} does this already" in told
    assert "ray job stop" in told
    assert "Traceback" not in told
    stopped = cluster.ray("job", "stop", named)
    assert stopped.returncode == 0, stopped.stderr
    assert cluster.ended(named) == "STOPPED"
    before = {file: file.stat().st_mtime_ns for file in out.glob("scores/*.parquet")}
    assert len(read_scores(out)) == 5 * BATCH
    gates.open()
    done = vig(*words)
    assert f"submitted {named}-2" in done.stderr
    assert "SUCCEEDED" in done.stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before
    return out


@pytest.mark.long
def test_a_stopped_job_submitted_again_does_the_rest(scored: Path) -> None:
    gating.assert_as_expected(read_scores(scored), gating.expected_scores(scored))


def test_ray_job_submit_runs_the_scripts(cluster: Head, scored: Path, tmp_path: Path) -> None:
    def submit(script: str, *words: object) -> None:
        done = cluster.ray(
            "job", "submit", "--no-wait", "--submission-id", f"my-{script}", "--working-dir", ROOT, "--",
            "python", f"jobs/{script}.py", *words,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    submit("select", "--scores", scored, "--out", scored, "--p", 50)
    assert cluster.ended("my-select") == "SUCCEEDED", cluster.ray("job", "logs", "my-select").stdout
    order = [row["sample_key"] for row in selected(scored)]
    with image_store() as images:
        data = hold_images(scored, tmp_path / "held", images, {"third": order[3 * 8 : 4 * 8]})
        submit("train", "--model", CHECKPOINT, "--samples", data, "--selection", scored, "--out", scored / "trained",
               "--max-steps", 5, "--global-batch", 8, "--workers", 1)  # fmt: skip
        images.wait_for("third")
        # While it trains.
        wait_until(lambda: cluster.measured("ray_vig_train_loss") is not None)
        wait_until(lambda: (cluster.measured("ray_vig_train_step") or 0) >= 1)
        assert cluster.measured("ray_vig_train_starts_total") == 1
        images.let_go("third")
        assert cluster.ended("my-train") == "SUCCEEDED", cluster.ray("job", "logs", "my-train").stdout
    assert (scored / "trained" / "model" / "config.json").exists()


@pytest.mark.long
def test_a_bucket_to_a_bucket(cluster: Head, s3: Callable[[], Any]) -> None:
    """Data, images and results in a store; what it takes to reach it goes along by name."""
    client = s3()
    client.create_bucket(Bucket="submitted")
    with tempfile.TemporaryDirectory() as folder:
        world.write(folder, 60, 84)
        for path in Path(folder).rglob("*.*"):
            client.upload_file(str(path), "submitted", f"data/{path.relative_to(folder)}")
    reach = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    along = ["--address", cluster.dashboard, *(word for name in reach for word in ("--env", name))]

    def submit(stage: str, *words: object) -> None:
        assert "SUCCEEDED" in vig("submit", stage, *along, *map(str, words)).stderr

    submit("score", "--data", "s3://submitted/data/data.json", "--model", CHECKPOINT, "--out", "s3://submitted/run",
           "--workers", 1, "--prepare-workers", 1)  # fmt: skip
    submit("select", "--scores", "s3://submitted/run", "--out", "s3://submitted/run", "--p", 50)
    submit("train", "--model", CHECKPOINT, "--samples", "s3://submitted/run/samples", "--selection",
           "s3://submitted/run/selection", "--out", "s3://submitted/trained", "--max-steps", 3, "--global-batch", 8,
           "--workers", 1)  # fmt: skip
    listed = client.list_objects_v2(Bucket="submitted", Prefix="trained/model/")["Contents"]
    assert any(each["Key"].endswith("model.safetensors") for each in listed)


@pytest.mark.long
def test_a_study_goes_along_with_its_file(cluster: Head, s3: Callable[[], Any], tmp_path: Path) -> None:
    """Relative paths start from the file's own folder, a store is one, and what the cluster doesn't see is refused."""
    client = s3()
    client.create_bucket(Bucket="asked")
    arms = {"folder": {}, "bucket": {"eval": {"data": {"exact": "s3://asked/exact.jsonl"}}}}
    path = made_study.write(tmp_path, arms=arms, baseline="folder", orders=[], seeds=1,
                            stages={"eval": {"model": "$model"}})  # fmt: skip
    for file in (tmp_path / "asked").rglob("*.*"):
        client.upload_file(str(file), "asked", str(file.relative_to(tmp_path / "asked")))
    reach = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    words = ["submit", "study", str(path), "--address", cluster.dashboard, *(f"--env={name}" for name in reach)]
    done = vig(*words, "--out", str(tmp_path / "out"))
    assert "submitted vig-study-" in done.stderr
    assert "no GPU on this cluster now: stages run on CPUs" in done.stdout
    numbers = made_study.numbers(tmp_path / "out")
    assert numbers["bucket", "exact.exact", "0"] == numbers["folder", "exact.exact", "0"]

    nowhere = str(tmp_path / "of-another-machine")
    gone = vig(*words, "--out", str(tmp_path / "other"), "--paths-from", nowhere, check=False)
    assert gone.returncode == 2
    last = gone.stderr.strip().splitlines()[-1]
    assert f"FAILED: study.yaml: stages.eval.data: {nowhere}/asked/exact.jsonl: not there on " in last
    assert last.endswith("name a folder that all machines see, or a store such as s3://")
    path.write_text(path.read_text().replace("max_new_tokens", "max_tokens"))
    refused = vig(*words, "--out", str(tmp_path / "out"), check=False)  # told here, before anything is sent
    assert refused.returncode == 2
    assert "stages.eval.max_tokens: no such option" in refused.stderr.splitlines()[-1]
    assert "submitted" not in refused.stderr


def test_a_wrong_job_fails_with_the_line_that_says_why(cluster: Head, scored: Path) -> None:
    words = ["submit", "select", "--address", cluster.dashboard, "--out", str(scored / "other")]
    done = vig(*words, "--scores", str(scored / "nowhere"), check=False)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("vig: vig-select-")
    assert "FAILED: " in last
    assert "nowhere" in last
    assert "Traceback" not in done.stderr
    name = last.split()[1]
    assert cluster.ended(name) == "FAILED"
    refused = vig(*words, "--scores", str(scored), "--p", "300", check=False)
    assert (refused.returncode, "--p" in refused.stderr) == (2, True)  # told here, before anything is sent
    nobody = vig("submit", "select", "--address", "http://127.0.0.1:9", "--scores", "x", "--out", "y", check=False)
    assert "no Ray dashboard answers" in nobody.stderr
    assert nobody.returncode == 2


@pytest.mark.long
def test_a_ray_that_runs_here_is_not_joined_unasked(cluster: Head, tmp_path: Path) -> None:
    data = world.write(str(tmp_path / "data"), 20, 79)
    vig("score", "--data", data, "--model", CHECKPOINT, "--out", str(tmp_path))
    assert len(read_scores(tmp_path)) == 20
    assert cluster.ray("job", "list").returncode == 0
