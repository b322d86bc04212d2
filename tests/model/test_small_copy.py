"""The small copy that a family is checked on has every kind of layer that the model has; what was found is kept."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vig_ray.errors import StageError
from vig_ray.model import remember
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.small_copy import small_copy
from vig_ray.scoring.engines import check
from vig_ray.training.training_model import refuse_uneven


def made(name: str, folder: Path, **changes: dict[str, Any]) -> str:
    """A family's checkpoint with another config, as a model of real depth has it."""
    importlib.import_module(f"tests.model.families.{name}").make(str(folder))
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for part, values in changes.items():
        (config if part == "top" else config[part]).update(values)
    file.write_text(json.dumps(config))
    return str(folder)


def test_windows_and_full_layers_are_left(tmp_path: Path) -> None:
    deep = {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]}
    text = {"num_hidden_layers": 28, "max_window_layers": 28, "layer_types": ["full_attention"] * 28}
    folder = made("qwen2_5_vl", tmp_path, vision_config=deep, text_config=text)
    vision, decoder = small_copy(folder).config.vision_config, small_copy(folder).config.text_config
    assert decoder.num_hidden_layers == 2
    assert len(vision.fullatt_block_indexes) == 4
    assert set(vision.fullatt_block_indexes) < set(range(vision.depth))


def test_layers_that_are_read_are_left(tmp_path: Path) -> None:
    layers = [-2, -5, -8, -11, 6]
    folder = made("vipllava", tmp_path, top={"vision_feature_layers": layers}, vision_config={"num_hidden_layers": 24})
    assert small_copy(folder).config.vision_config.num_hidden_layers == 11


def test_deepstack_is_left(tmp_path: Path) -> None:
    deep = {"depth": 27, "deepstack_visual_indexes": [8, 16, 24]}
    vision = small_copy(made("qwen3_vl", tmp_path, vision_config=deep)).config.vision_config
    assert list(vision.deepstack_visual_indexes) == [1, 2, 3]
    assert vision.depth == 4


def test_every_kind_of_text_layer_is_left(tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    text = {"num_hidden_layers": 12, "layer_types": kinds * 2}
    config = small_copy(made("gemma3", tmp_path, text_config=text)).config.text_config
    assert config.layer_types == kinds


def test_random_state_is_left_as_it_was(tmp_path: Path) -> None:
    folder = made("llava_siglip", tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    small_copy(folder)
    assert torch.equal(torch.rand(1), expected)


def test_without_room_the_loaded_model_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made("llava_siglip", tmp_path)
    monkeypatch.setattr("vig_ray.model.small_copy._SHARE_OF_MEMORY", 0.0)
    formatter = load_formatter(folder)
    assert small_copy(folder) is None
    assert "no room for a small copy" in caplog.text
    engine = check.TorchEngine(load_model(folder, dtype="float32", device="cpu"), formatter.collate)
    monkeypatch.setenv("VIG_RAY_CACHE", str(tmp_path / "cache"))
    check.make_sure(engine, folder, formatter)
    assert "checked on a few conversations" in engine.description
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_what_was_found_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("llava_siglip", tmp_path / "m")
    formatter = load_formatter(folder)
    monkeypatch.setenv("VIG_RAY_CACHE", str(tmp_path / "cache"))
    calls = []

    def find() -> dict[str, Any]:
        calls.append(1)
        return {"apart": 1e-6}

    for _ in range(2):
        assert remember.remembered("a check", folder, formatter, find) == {"apart": 1e-6}
    assert len(calls) == 1
    (kept,) = (tmp_path / "cache").rglob("*.json")
    for broken in ("{}", "[]", "null", "{", ""):
        kept.write_text(broken)
        assert remember.remembered("a check", folder, formatter, find) == {"apart": 1e-6}
    assert len(calls) == 6
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIG_RAY_CACHE", str(tmp_path / "file"))  # no folder can be made there
    assert remember.remembered("a check", folder, formatter, find) == {"apart": 1e-6}
    assert len(calls) == 7


def test_layers_that_some_workers_would_leave_out(tmp_path: Path) -> None:
    model = load_model(made("mllama", tmp_path), dtype="float32", device="cpu")
    refuse_uneven(model, 1)
    with pytest.raises(StageError, match="train with --workers 1"):
        refuse_uneven(model, 2)
