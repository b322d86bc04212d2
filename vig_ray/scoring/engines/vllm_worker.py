"""Imported by every vLLM worker (`worker_extension_cls`) before it makes the model, and by nothing else.

It teaches vLLM to read a LLaVA as transformers 5 saves one, and ends the engine's processes with their owner.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import psutil

from vig_ray.compat.vllm import rename_weights
from vig_ray.scoring.engines.vllm_faults import OWNER

_CHECK_EVERY_S = 1.0
# vLLM's models whose CLIP or SigLIP tower is called `vision_tower`.
_NESTING = (
    ("llava", "LlavaForConditionalGeneration"),
    ("llava_next", "LlavaNextForConditionalGeneration"),
    ("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
    ("gemma3_mm", "Gemma3ForConditionalGeneration"),
    ("paligemma", "PaliGemmaForConditionalGeneration"),
)


class Worker:
    """Adds nothing to vLLM's worker: that vLLM imports this module is the point."""


def read_unnested_towers() -> None:
    """Take `vision_tower.encoder...` for `vision_tower.vision_model.encoder...`, the hub's name, which vLLM wants.

    transformers 5 writes the first for a model that it made itself, the second for one that it loaded.
    """
    tower = re.compile(r"^(?:model\.)?vision_tower\.(?=(?:embeddings|pre_layrnorm|encoder|post_layernorm)\.)")
    for module, model in _NESTING:
        rename_weights(module, model, tower, "vision_tower.vision_model.")


def end_with_owner() -> None:
    """Watch for the end of the owner, and end then: vLLM's engine process would keep the GPU's memory for ever."""
    owner = int(os.environ.get(OWNER, "0"))
    if not owner or owner == os.getpid():
        return
    parent = os.getppid()
    engine = None
    if parent != owner:
        # With several workers the engine is a process between. Anything else has adopted an orphan.
        try:
            engine = parent if psutil.Process(parent).ppid() == owner else None
        except psutil.NoSuchProcess:
            engine = None
    threading.Thread(target=_watch, args=(owner, engine), daemon=True).start()


def _watch(owner: int, engine: int | None) -> None:
    while _lives(owner):
        time.sleep(_CHECK_EVERY_S)
    if engine is not None and os.getppid() == engine:
        os.kill(engine, signal.SIGKILL)
    os._exit(1)


def _lives(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


read_unnested_towers()
end_with_owner()
