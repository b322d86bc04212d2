"""Checkpoints told apart, and broken ones told before anything loads them."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
import torch
from safetensors.torch import load_file, save_file

from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint, local_folder
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


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that refuses: by the model's name with the header that tells the client why."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.send_response(403 if gated else 401)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("somebody/gated", "those who have accepted its terms there and are logged in"),
        ("somebody/private", "on the hub no such model, or a private one"),
    ],
)
def test_what_the_hub_refuses_is_told(model: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # Read from the environment when the package is loaded, into two places.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", huggingface_hub.constants.ENDPOINT)
    try:
        with pytest.raises(StageError, match=told):
            local_folder(model, weights=True)
    finally:
        server.shutdown()
        server.server_close()
