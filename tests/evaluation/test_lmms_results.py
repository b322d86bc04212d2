"""What lmms-eval writes, read back and put into the table; its environment; programs that end with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gates import gone
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.lmms import child, run
from vig_ray.evaluation.lmms.asked import planned
from vig_ray.evaluation.lmms.environment import REQUIREMENTS, python_of, set_up
from vig_ray.evaluation.lmms.model import wrapped
from vig_ray.evaluation.lmms.results import collect, read
from vig_ray.evaluation.lmms.run import Failed
from vig_ray.evaluation.lmms.table import in_table

QUESTIONS = 40


def write(folder: Path, right: np.ndarray, seconds: float) -> str:
    """A group of two tasks as lmms-eval 0.7.3 writes it: one with a mean, one with a number that is no mean."""
    stderr = float(right.std(ddof=1) / np.sqrt(len(right)))
    of = folder / "some__model"
    of.mkdir(parents=True)
    results = {
        "results": {
            "both": {"alias": "both", "acc,none": float(right.mean()), "acc_stderr,none": stderr},
            "one": {
                "alias": " - one", "acc,none": float(right.mean()), "acc_stderr,none": stderr,
                "acc_stderr_clt,none": stderr, "acc_stderr_clustered,none": "N/A",
            },
            "other": {"alias": " - other", "seconds,none": seconds, "seconds_stderr,none": "N/A",
                      "seconds_stderr_clt,none": 0.5, "submission,none": "a file"},
        },
        "group_subtasks": {"both": ["one", "other"], "one": [], "other": []},
        "higher_is_better": {"one": {"acc": True}, "other": {"seconds": False, "submission": True}},
        "n-samples": {name: {"original": 100, "effective": QUESTIONS} for name in ("one", "other")},
    }  # fmt: skip
    (of / "20300101_000000_results.json").write_text(json.dumps(results))
    order = np.random.default_rng(1).permutation(QUESTIONS)
    samples = {
        "one": [{"doc_id": int(n), "filtered_resps": "x", "acc": bool(right[n])} for n in order],
        "other": [{"doc_id": int(n), "filtered_resps": "x", "seconds": {"of": 3}} for n in order],
    }
    for name, lines in samples.items():
        (of / f"20300101_000000_samples_{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    collect(str(folder), str(folder / "made"))
    return str(folder / "made")


def test_numbers_of_two_models_and_their_difference(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    base = (chance.random(QUESTIONS) < 0.5).astype(float)
    better = np.maximum(base, chance.random(QUESTIONS) < 0.3)
    found = {
        "base": {"both": read(write(tmp_path / "base", base, 10.0), "both"), "gone": Failed("no net")},
        "better": {
            "both": read(write(tmp_path / "better", better, 8.0), "both", not_answered=2, why="too long"),
            "gone": Failed("no net"),
        },
        "broken": {"both": Failed("a disk is full"), "gone": Failed("no net")},
    }

    table = in_table(found, "base", draws=2000, seed=3)

    assert [(task.name, task.part, task.questions) for task in table.tasks] == [
        ("lmms:both", False, 2 * QUESTIONS),
        ("lmms:one", True, QUESTIONS),
        ("lmms:other", True, QUESTIONS),
    ]
    _, one, other = table.tasks
    # The paired bootstrap by NumPy, of other draws.
    drawn = chance.integers(0, QUESTIONS, (20_000, QUESTIONS))
    low, high = np.percentile((better - base)[drawn].mean(axis=1), [2.5, 97.5])
    difference = one.models["better"].differences["acc"]
    assert difference.value == pytest.approx((better - base).mean())
    assert (difference.low, difference.high) == (pytest.approx(low, abs=0.026), pytest.approx(high, abs=0.026))
    assert one.models["base"].numbers["acc"].value == pytest.approx(base.mean())
    # Without paired answers: standard errors, as of independent numbers.
    assert [metric.name for metric in other.metrics] == ["seconds"]
    assert not other.main.higher_is_better
    faster = other.models["better"].differences["seconds"]
    assert (faster.value, faster.low) == (-2.0, pytest.approx(-2 - 1.96 * np.hypot(0.5, 0.5), abs=1e-4))
    for task in (one, other):
        broken = task.models["broken"]
        assert np.isnan([each.value for each in broken.numbers.values()]).all()
        assert (broken.answered, broken.failures.total()) == (0, QUESTIONS)
        assert broken.examples == {"lmms-eval": "a disk is full"}
    assert table.failed == 1
    assert table.told == (
        "lmms:both: better failed at 2 of 80 questions (too long), which lmms-eval counts as wrong",
        "lmms:both: intervals of acc are lmms-eval's standard errors, not paired",
        "lmms:other: intervals of seconds are lmms-eval's standard errors, not paired",
        "lmms:gone failed: no net",
    )


def test_a_task_that_only_writes_a_file_has_no_number(tmp_path: Path) -> None:
    folder = write(tmp_path, np.ones(QUESTIONS), 1.0)
    results = Path(folder, "results.json")
    said = json.loads(results.read_text())
    said["results"] = {"other": {"submission,none": "a file"}}
    results.write_text(json.dumps(said))
    with pytest.raises(StageError, match="computes no number of it here, but leaves its answers"):
        read(folder, "other")
    with pytest.raises(StageError, match="ended without results"):
        collect(str(tmp_path / "empty"), str(tmp_path / "made"))


def config(**given: Any) -> EvalConfig:
    return EvalConfig(**({"model": ("m",), "tasks": ("lmms:mmmu_val",), "out": "out", "device": "cpu"} | given))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"data": {"": "x"}}, "--data x: not for tasks of lmms-eval"),
        ({"tasks": ("pope", "lmms:a"), "data": {"lmms:a": "x"}}, "--data lmms:a: not for tasks of lmms-eval"),
        ({"decoding": "vcd"}, "--decoding vcd: not with tasks of lmms-eval"),
        ({"engine": "my:engine"}, "--engine my:engine: tasks of lmms-eval"),
        (
            {"lmms_environment": "nowhere"},
            "nowhere: lmms-eval's environment isn't there; `vig eval --setup-lmms nowhere`",
        ),
    ],
)
def test_words_that_lmms_eval_cannot_follow(given: dict[str, Any], line: str) -> None:
    with pytest.raises(StageError) as told:
        planned(config(**given), [])
    assert line in str(told.value)


def test_a_model_without_a_wrapper(qwen_checkpoint: str, tmp_path: Path) -> None:
    asked = wrapped(CHECKPOINT, None, device="cpu", dtype="float32", trust_remote_code=False)
    assert asked.words()[:2] == ["--model", "llava_hf"]
    asked = wrapped(CHECKPOINT, "openai,batch_size=3,x=y", device="cpu", dtype=None, trust_remote_code=False)
    assert asked.words() == [
        *("--model", "openai", "--model_args", f"pretrained={CHECKPOINT},device_map=cpu,x=y"),
        *("--device", "cpu", "--batch_size", "3"),
    ]
    with pytest.raises(StageError, match="qwen2_5_vl runs in bfloat16 alone"):
        wrapped(qwen_checkpoint, None, device="cpu", dtype="float32", trust_remote_code=False)
    odd = tmp_path / "a,b"
    odd.mkdir()
    (odd / "config.json").write_text("{}")
    with pytest.raises(StageError, match="no path with a comma"):
        wrapped(str(odd), None, device="cpu", dtype=None, trust_remote_code=False)


def test_an_environment_that_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match="holds something else"):
        set_up(str(tmp_path))
    (tmp_path / "vig-ray.json").write_text(json.dumps({"complete": False, "requirements": REQUIREMENTS}))
    with pytest.raises(StageError, match="isn't finished, or of another version"):
        python_of(str(tmp_path))
    (tmp_path / "vig-ray.json").write_text(json.dumps({"complete": True, "requirements": REQUIREMENTS}))
    with pytest.raises(StageError, match="Python of lmms-eval's environment is gone"):
        python_of(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a program that its parent has ended")
def test_a_program_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    said = tmp_path / "said"
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    starts = (
        "import sys, time\nfrom vig_ray.evaluation.lmms.child import running\n"
        f"with running([sys.executable, '-c', {program!r}], {str(said)!r}):\n    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", starts])
    while not (said.exists() and said.read_text().endswith("\n")):
        assert parent.poll() is None
        time.sleep(0.02)
    started = int(said.read_text())
    os.kill(started, 0)
    parent.kill()
    parent.wait()
    while not gone(started):
        time.sleep(0.02)
    assert child.last_words(str(said)) == str(started)
    with child.running(["sleep", "600"], str(said)) as process:
        pass
    assert process.returncode == -15


SERVER = """\
import http.server, os, sys, threading, time

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
server = http.server.HTTPServer(("127.0.0.1", port), Health)
threading.Thread(target=server.serve_forever, daemon=True).start()
while not os.path.exists(os.environ["VIG_TEST_GATE"]):
    time.sleep(0.05)
print("a cable is loose", file=sys.stderr, flush=True)
os._exit(3)
"""


def test_a_server_that_ends_ends_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for vLLM's server, which ends once the first task runs, and for lmms-eval, which waits for answers."""
    gate, package = tmp_path / "gate", tmp_path / "packages" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("VIG_TEST_GATE", str(gate))
    waits = tmp_path / "python"
    waits.write_text(f"#!/bin/sh\necho $$ >>{gate}\nexec sleep 600\n")
    waits.chmod(0o755)
    monkeypatch.setattr(run, "python_of", lambda _: str(waits))
    options = run.LmmsOptions(through="vllm", device="cpu", timeout=60)
    config = EvalConfig(model=(CHECKPOINT,), tasks="lmms:a,lmms:b", out=str(tmp_path / "out"))  # type: ignore[arg-type]

    found = run.run_lmms("demo", CHECKPOINT, ["a", "b"], str(tmp_path / "out"), options, config)

    for failed in found.values():
        assert isinstance(failed, Failed)
        assert failed.why.startswith("vLLM's server ended with status 3: a cable is loose (all of it: ")
        assert "\n" not in failed.why
    (begun,) = gate.read_text().split()  # the second task isn't begun
    while not gone(int(begun)):
        time.sleep(0.05)
