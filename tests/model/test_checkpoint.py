"""Checkpoints told apart, and broken ones told before anything loads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.load import load_formatter, load_model, template_fingerprint


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    return tmp_path / "model"


def test_a_copy_has_the_same_fingerprint(copy: Path) -> None:
    assert fingerprint(str(copy)) == fingerprint(CHECKPOINT)


def test_every_tensor_counts(copy: Path) -> None:
    """Aligned models often differ in their projector alone."""
    before = fingerprint(str(copy))
    weights = load_file(copy / "model.safetensors")
    for name in ("multi_modal_projector.linear_2.bias", "language_model.model.layers.1.mlp.up_proj.weight"):
        changed = {key: tensor.clone() for key, tensor in weights.items()}
        changed[name] += 1e-3
        save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
        assert fingerprint(str(copy)) != before


def test_the_config_counts(copy: Path) -> None:
    before = fingerprint(str(copy))
    config = json.loads((copy / "config.json").read_text())
    config["vision_feature_layer"] = -1
    (copy / "config.json").write_text(json.dumps(config))
    assert fingerprint(str(copy)) != before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "not a whole safetensors file"),
        (b"", "not a whole safetensors file"),
        (None, "no weights"),
    ],
)
def test_broken_weights_are_told(copy: Path, content: bytes | None, told: str) -> None:
    (copy / "model.safetensors").unlink()
    if content is not None:
        (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(StageError, match=told):
        fingerprint(str(copy))


def test_a_cut_download_is_told(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(StageError, match="ends before its last tensor"):
        fingerprint(str(copy))


def test_a_missing_shard_is_named(copy: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StageError, match=r"names model-00002-of-00002\.safetensors, which isn't there"):
        fingerprint(str(copy))


def test_missing_tensors_are_not_filled_with_random_numbers(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["multi_modal_projector.linear_1.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="multi_modal_projector"):
        load_model(str(copy), dtype="float32", device="cpu")


def test_the_template_fingerprint_follows_tokenizer_and_template(copy: Path) -> None:
    plain, chat = load_formatter(str(copy)), load_formatter(str(copy), "chat")
    assert template_fingerprint(plain) == template_fingerprint(load_formatter(CHECKPOINT))
    assert template_fingerprint(plain) != template_fingerprint(chat)


def test_both_templates_of_the_demo_model_mark_the_same_tokens(copy: Path) -> None:
    """The chat template that exports carry says what the llava_v1 formatter says."""
    import numpy as np

    from vig_ray.dataset.schema import Turn
    from vig_ray.model.prompt import PromptImage

    turns = [Turn("user", "Is there a dot?\n<image>"), Turn("assistant", "No, there is no dot."), Turn("user", "Sure?")]
    turns.append(Turn("assistant", "Yes."))
    prompts = []
    for template in ("llava_v1", "chat"):
        formatter = load_formatter(str(copy), template)
        image = PromptImage("p", lambda: np.zeros((30, 40, 3), np.uint8), formatter.preprocess)
        prompts.append(formatter.prompt(turns, [image]))
        assert torch.isfinite(formatter.collate([image.inputs], "cpu", torch.float32)["pixel_values"]).all()
    one, other = prompts
    words = [formatter.tokenizer.decode(prompt.answer_ids) for prompt in prompts]
    assert words[0] == words[1]
    assert one.image_mask.sum() == other.image_mask.sum() == 16
