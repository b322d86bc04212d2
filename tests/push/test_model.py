"""A trained model in a model repository: transformers loads it from there, and the card says how it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, snapshot_download

from tests.command import call, refused
from tests.hub import Hub
from vig_ray.demo import CHECKPOINT

TO = "org/trained"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished `vig train` leaves: the model, and the record of its training."""
    out = tmp_path / "runs" / "demo"
    shutil.copytree(CHECKPOINT, out / "model")
    config = json.loads((out / "model" / "config.json").read_text())
    config["_name_or_path"] = str(tmp_path / "models" / "aligned")
    (out / "model" / "config.json").write_text(json.dumps(config))
    total = {"scored": 70, "text_only": 10, "failed": 0, "tokens": 900, "active": 400, "text_tokens": 50, "emptied": 0}
    kept = {"share": 70.0, "thresholds": {"": 0.1}, "total": total}
    record: dict[str, Any] = {
        "stage": "train",
        "config": {
            "model": str(tmp_path / "models" / "aligned"), "samples": str(tmp_path / "runs" / "samples"), "lr": 2e-5,
            "out": str(out), "epochs": 1, "global_batch": 8, "train": ["projector", "language"], "lora": False,
        },
        "versions": {"vig_ray": "0.1", "torch": "2.13.0"},
        "complete": True,
        "run": "3f9a12bc",
        "runs": ["3f9a12bc"],
        "identity": {
            "model": "f" * 16,
            "template": "t" * 16,
            "samples": {"name": "demo", "inputs": [{"path": str(tmp_path / "data.json")}]},
            "selection": {"selection": {"strategy": "vig", "kept": [kept]}},
        },
        "prompts": {"model": str(tmp_path / "models" / "aligned"), "template": "llava_v1"},
        "dtype": "float32",
        "workers": "1 on a CPU",
        "result": {"steps": 10, "samples": 80, "loss": 1.25, "held_out": [1.5, 1.75], "unusable": {}},
    }  # fmt: skip
    (out / "training.stage.json").write_text(json.dumps(record))
    return out


def test_transformers_loads_it_from_there(run: Path, server: Hub, tmp_path: Path) -> None:
    from vig_ray.model.load import load_model

    call("push", str(run), "--to", TO, "--yes", "--license", "llama2")
    folder = Path(snapshot_download(TO, token=server.token))
    theirs = load_model(str(folder), dtype="float32", device="cpu").state_dict()
    ours = load_model(CHECKPOINT, dtype="float32", device="cpu").state_dict()
    assert theirs.keys() == ours.keys()
    assert all(bool((theirs[name] == ours[name]).all()) for name in ours)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert str(tmp_path) not in path.read_text(), path
        if path.is_file() and path.name not in ("config.json", "README.md", "vig-ray.json", ".gitattributes"):
            assert path.read_bytes() == (Path(CHECKPOINT) / path.relative_to(folder)).read_bytes()


def test_the_card_is_filled_from_the_training(run: Path, server: Hub) -> None:
    call("push", str(run), "--to", TO, "--yes", "--license", "llama2", "--base-model", "org/aligned-7b")
    card = ModelCard.load(TO, token=server.token)
    assert card.data.license == "llama2"
    assert card.data.base_model == "org/aligned-7b"
    assert card.data.pipeline_tag == "image-text-to-text"
    for told in (
        "80 samples and 400 active tokens",
        "`vig` at 70 %",
        "| steps | 10 |",
        "1.2500 nats a token",
        "| held-out loss, active tokens | 1.5000",
        "| `lr` | 2e-05 |",
        "projector, language",
        "`demo`",
    ):
        assert told in card.text, told
    assert json.loads(server.read(TO, "config.json", kind="models"))["_name_or_path"] == "org/aligned-7b"


def test_without_a_hub_id_the_base_model_is_a_name(run: Path, server: Hub) -> None:
    call("push", str(run / "model"), "--to", TO, "--yes")
    card = ModelCard.load(TO, token=server.token)
    assert card.data.get("base_model") is None
    assert "`aligned`" in card.text


def test_again_sends_nothing(run: Path, server: Hub) -> None:
    call("push", str(run), "--to", TO, "--yes")
    before = server.repositories["models", TO].branches["main"]
    assert "nothing had changed" in call("push", str(run), "--to", TO, "--yes").stdout
    assert server.repositories["models", TO].branches["main"] == before


def test_an_export_is_its_trainings(run: Path, server: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    shutil.copytree(run / "model", folder)
    told = {"stage": "export", "config": {"run": str(run), "out": str(folder), "dtype": "bfloat16"}, "complete": True}
    (tmp_path / "exported.stage.json").write_text(json.dumps(told))
    call("push", str(folder), "--to", TO, "--yes")
    assert "| precision | bfloat16" in ModelCard.load(TO, token=server.token).text


def test_an_adapter_needs_its_base_on_the_hub(run: Path, server: Hub) -> None:
    adapter = run / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 4, "base_model_name_or_path": "/models/aligned"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    assert "name it on the hub with --base-model" in refused("push", str(adapter), "--to", TO, "--yes")
    call("push", str(adapter), "--to", TO, "--yes", "--base-model", "org/aligned-7b")
    stored = json.loads(server.read(TO, "adapter_config.json", kind="models"))
    assert stored == {"r": 4, "base_model_name_or_path": "org/aligned-7b"}
    assert server.read(TO, "adapter_model.safetensors", kind="models") == b"weights"


def test_what_isnt_a_trained_model_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "plain")
    assert "nothing tells how it was trained" in refused("push", str(tmp_path / "plain"), "--to", TO, "--dry-run")
    record = run / "training.stage.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    assert "its training isn't finished" in refused("push", str(run), "--to", TO, "--dry-run")
    assert "no scores/ and no model/ here" in refused("push", str(tmp_path), "--to", TO, "--dry-run")
