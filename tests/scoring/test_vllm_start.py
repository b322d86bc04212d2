"""Starting vLLM and losing it: options, checkpoints, processes. Runs after test_vllm.py, and by itself.

vLLM keeps its process groups in globals: an engine that fails to start, or that is collected, takes them from the
others in its process. So what is meant to start here starts in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny_models
from tests.conftest import VLLM_OPTIONS
from tests.scoring.prompts import LONG, ask, picture
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.load import load_formatter, load_model
from vig_ray.scoring.engines.load import load_engine
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.engines.vllm_faults import cause_of

pytestmark = pytest.mark.vllm


def load(folder: str, *, dtype: str = "float32", options: dict[str, Any] | None = None) -> Any:
    return load_engine(
        "vllm",
        model=folder,
        template="auto",
        max_length=511,
        dtype=dtype,
        device="cpu",
        batch_tokens=1024,
        vllm=VLLM_OPTIONS | (options or {}),
    )


def _score(folder: str, dtype: str, options: dict[str, Any]) -> Any:
    formatter = load_formatter(CHECKPOINT)
    engine = load(folder, dtype=dtype, options=options)
    return engine.logprobs([ask(formatter, LONG, picture(4, formatter))])[0]


def started(folder: str, *, dtype: str = "float32", options: dict[str, Any] | None = None) -> Any:
    """Start vLLM in a process of its own; the log-probs that it finds for one prompt."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_score, folder, dtype, options or {}).result(timeout=300)


@pytest.fixture
def expected(demo_model: Any, demo_formatter: Any) -> Any:
    """What the torch engine finds for the prompt that `started` scores."""
    prompt = ask(demo_formatter, LONG, picture(4, demo_formatter))
    return TorchEngine(demo_model, demo_formatter.collate).logprobs([prompt])[0]


# Options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"tensor_paralel_size": 2},
            r"--vllm tensor_paralel_size: .*no such option; did you mean tensor_parallel_size",
        ),
        ({"model": "x"}, r"--vllm model: set by vig-ray itself; use --model"),
        ({"max_num_seqs": "many"}, r"max_num_seqs"),
        ({"quantization": "sevenbit"}, r"quantization"),
        ({"kv_cache_memory_bytes": 4096}, r"lower --max-length or --batch-tokens"),
    ],
)
def test_options_are_vllms_own_and_checked_by_it(options: dict[str, Any], told: str) -> None:
    with pytest.raises(StageError, match=told) as failed:
        load(CHECKPOINT, options=options)
    assert "\n" not in str(failed.value)


@pytest.mark.long
def test_half_precision_has_float32_logits(expected: Any) -> None:
    """bfloat16 logits near 16 lie 0.06 apart, as much as a small gain. A user's own setting wins."""
    half = started(CHECKPOINT, dtype="bfloat16")
    likely = expected > -3
    assert np.abs(half - expected)[likely].max() < 0.25
    coarse = started(CHECKPOINT, dtype="bfloat16", options={"hf_overrides": {"head_dtype": "model"}})
    assert np.abs(coarse - half).max() > 1e-3


# Checkpoints


def made_by_transformers(folder: Path, source: str) -> str:
    """The demo model as transformers 5 saves one that it made itself: its tower's names lack `vision_model`."""
    from transformers import AutoConfig, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration(AutoConfig.from_pretrained(source))
    model.load_state_dict(load_model(source, dtype="float32", device="cpu").state_dict())
    shutil.copytree(source, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    model.save_pretrained(folder)
    return str(folder)


def test_a_checkpoint_by_save_pretrained_gives_the_same(tmp_path: Path, expected: Any) -> None:
    folder = made_by_transformers(tmp_path / "saved", CHECKPOINT)
    names = set(load_file(Path(folder) / "model.safetensors"))
    assert any(name.startswith("vision_tower.encoder.") for name in names)
    np.testing.assert_allclose(started(folder), expected, atol=1e-4)


def test_a_checkpoint_that_this_project_exports_gives_the_same(tmp_path: Path, expected: Any, demo_model: Any) -> None:
    from transformers import AutoProcessor

    from vig_ray.model.export import save_checkpoint

    save_checkpoint(demo_model, AutoProcessor.from_pretrained(CHECKPOINT), str(tmp_path / "out"))
    np.testing.assert_allclose(started(str(tmp_path / "out")), expected, atol=1e-4)


def test_an_unknown_layout_says_how_to_convert(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "odd")
    path = tmp_path / "odd" / "model.safetensors"
    tensors = load_file(path)
    tensors["tower.of.another.layout"] = tensors.pop("vision_tower.vision_model.embeddings.class_embedding")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"layout.*save_checkpoint.*--engine torch"):
        load(str(tmp_path / "odd"))


def test_images_that_see_both_ways_are_refused_on_a_cpu(tmp_path: Path) -> None:
    """vLLM computes Gemma 3 with a causal mask there, and says nothing."""
    tiny_models.write_gemma(str(tmp_path / "gemma"), softcap=None, heads=2)
    with pytest.raises(StageError, match=r"both ways.*--engine torch"):
        load(str(tmp_path / "gemma"))


def test_another_image_form_than_vllms_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vig_ray.model.llava import LlavaFormatter

    collate = LlavaFormatter.collate

    def unnormalised(self: Any, inputs: Any, device: Any, dtype: Any) -> Any:
        return {name: value * 3 for name, value in collate(self, inputs, device, dtype).items()}

    monkeypatch.setattr(LlavaFormatter, "collate", unnormalised)
    with pytest.raises(StageError, match=r"pixel_values of other values.*--engine torch"):
        load(CHECKPOINT)


# An engine in a process of its own, as on a GPU

CHILD = """
import json, os, sys, time
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
from tests.scoring.prompts import ask
from tests.scoring.test_vllm_start import CHECKPOINT, load
from vig_ray.model.load import load_formatter
from vig_ray.scoring.engines import EngineDiedError

if __name__ == "__main__":
    formatter = load_formatter(CHECKPOINT)
    engine = load(CHECKPOINT, options={"max_num_seqs": 1})
    prompts = [ask(formatter, "word " * 60, None) for _ in range(64)]
    engine.logprobs(prompts[:1])
    print("ready", flush=True)
    try:
        while True:
            engine.logprobs(prompts)
    except EngineDiedError as error:
        print(error, flush=True)
        os._exit(7)
"""


@pytest.fixture
def child(tmp_path: Path) -> Any:
    """A process that scores without end on an engine of its own; (process, process id of the engine)."""
    (tmp_path / "child.py").write_text(CHILD)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": f"{root}/tests/vllm_setup:{root}"}
    with open(tmp_path / "errors.txt", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "child.py")],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=root,
            env=environment,
        )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "ready":
            break
    (engine,) = [one for one in psutil.Process(process.pid).children() if "EngineCore" in " ".join(one.cmdline())]
    yield process, engine
    process.kill()
    process.wait()


def test_a_killed_engine_process_is_noticed_by_who_waits_for_it(child: Any) -> None:
    process, engine = child
    engine.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == 7
    assert "ended without a word" in process.stdout.read()


def test_an_engine_process_ends_with_its_owner(child: Any) -> None:
    """Otherwise it would keep the GPU's memory from the engine that replaces it."""
    process, engine = child
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs([engine], timeout=30)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_the_cause_is_found_in_what_the_engine_process_said(tmp_path: Path) -> None:
    """As under Ray, where standard error is a file."""
    script = (
        "import sys; from vig_ray.scoring.engines.vllm_faults import cause_of\n"
        "print('(EngineCore pid=1) ERROR [core.py] torch.OutOfMemoryError: CUDA out of memory.', file=sys.stderr)\n"
        "print('(EngineCore pid=1) going down', file=sys.stderr, flush=True)\n"
        "print(cause_of(RuntimeError('Engine core initialization failed. See root cause above.')))"
    )
    with open(tmp_path / "errors.txt", "w") as errors:
        told = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=errors, text=True).stdout
    assert told.startswith("OutOfMemoryError: CUDA out of memory.; lower --batch-tokens")


def test_a_cause_without_words_is_said_to_be_one() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    assert "ended without a word" in cause_of(EngineDeadError())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_goes_the_way_of_answer_rows(demo_formatter: Any) -> None:
    """The packaged model has heads of 32 and float32 weights, which the GPU's attention kernels take too."""
    engine = load_engine(
        "vllm", model=CHECKPOINT, template="auto", max_length=511, dtype="float32", device="cuda", vllm=VLLM_OPTIONS
    )
    assert "answer rows only" in engine.description
    image = picture(4, demo_formatter)
    prompts = [ask(demo_formatter, f"{LONG} {end}", image) for end in ("Yes.", "No.")]
    expected = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cuda"), demo_formatter.collate)
    for one, other in zip(engine.logprobs(prompts), expected.logprobs(prompts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
