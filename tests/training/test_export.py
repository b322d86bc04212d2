"""What a run leaves behind: checkpoints that others load, with the weights that were trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.training.runs import alone, left_by, setup_of, weights_of
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.load import load_formatter, load_model
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.training import export
from vig_ray.training.export import ExportConfig
from vig_ray.training.run import Run


@pytest.fixture(scope="module")
def trained(chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    out = tmp_path_factory.mktemp("trained")
    return (run := alone(setup_of(chosen, max_steps=3), out / "training" / "checkpoints")), left_by(run, out)


@pytest.fixture(scope="module")
def adapted(chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    out = tmp_path_factory.mktemp("adapted")
    setup = setup_of(chosen, max_steps=4, lora=True, lora_rank=4, lora_alpha=8.0, lr=1e-2)
    return (run := alone(setup, out / "training" / "checkpoints")), left_by(run, out)


def logits_of(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, 400, (2, 40), generator=generator)
    ids[:, 5:21] = model.config.image_token_id
    pixels = torch.randn((2, 3, 56, 56), generator=generator)
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits


def test_the_model_that_was_trained_is_the_model_that_is_written(trained: tuple[Run, Path]) -> None:
    run, out = trained
    loaded, report = AutoModelForImageTextToText.from_pretrained(out / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = weights_of(run)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # transformers 5 would name the tower otherwise; the hub, and vLLM, want it so.
    names = set(load_file(out / "model" / "model.safetensors"))
    assert names == set(load_file(Path(CHECKPOINT) / "model.safetensors"))
    assert fingerprint(str(out / "model")) != fingerprint(CHECKPOINT)
    frozen = [name for name in names if name.startswith("vision_tower")]
    before, after = load_file(Path(CHECKPOINT) / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in names if "projector" in name)


def test_what_goes_with_the_model_says_the_same_as_training_did(trained: tuple[Run, Path], demo_formatter: Any) -> None:
    _, out = trained
    formatter = load_formatter(str(out / "model"))
    assert formatter.identity() == demo_formatter.identity()
    processor = AutoProcessor.from_pretrained(out / "model")
    assert processor.image_processor.do_pad
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red circle."}]},
    ]
    told = processor.apply_chat_template(turns)
    assert told.endswith("USER: <image>\nWhat? ASSISTANT: A red circle.</s>")


def test_the_scorer_reads_it(trained: tuple[Run, Path], demo_formatter: Any) -> None:
    run, out = trained
    engine = TorchEngine(load_model(str(out / "model"), dtype="float32", device="cpu"), demo_formatter.collate)
    source = run.setup.source()
    prompts = [sample.prompt for sample in source.__getitems__([0, 1, 2])]  # type: ignore[union-attr]
    run.training_model.model.eval()
    expected = TorchEngine(run.training_model.model, demo_formatter.collate).logprobs(prompts)
    for ours, theirs in zip(engine.logprobs(prompts), expected, strict=True):
        assert np.allclose(np.asarray(ours), np.asarray(theirs), atol=1e-6)


def test_lora_merged_and_apart_are_the_same_model(adapted: tuple[Run, Path]) -> None:
    from peft import PeftModel

    run, out = adapted
    trained_here = logits_of(run.training_model.model)
    merged = AutoModelForImageTextToText.from_pretrained(out / "model")
    base = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    before = logits_of(base)
    apart = PeftModel.from_pretrained(base, str(out / "adapter"))
    assert (logits_of(merged) - trained_here).abs().max() < 1e-4
    assert (logits_of(apart) - trained_here).abs().max() < 1e-4
    assert (before - trained_here).abs().max() > 0.1
    trained = {name for name, p in run.training_model.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or "multi_modal_projector" in name for name in trained)


def test_export_of_a_checkpoint_is_the_model_at_the_end(
    trained: tuple[Run, Path], adapted: tuple[Run, Path], tmp_path: Path
) -> None:
    for number, (_, out) in enumerate((trained, adapted)):
        target = tmp_path / str(number)
        export.run(ExportConfig(run=str(out), out=str(target)))
        expected, found = load_file(out / "model" / "model.safetensors"), load_file(target / "model.safetensors")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    export.run(ExportConfig(run=str(adapted[1]), out=str(tmp_path / "adapter"), format="adapter"))
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "adapter", adapted[1] / "adapter"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    half = tmp_path / "half"
    export.run(ExportConfig(run=str(trained[1]), out=str(half), dtype="bfloat16"))
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(half / "model.safetensors").values()} == {torch.bfloat16}


def test_what_cannot_be_exported_is_one_line(trained: tuple[Run, Path], tmp_path: Path) -> None:
    def refused(told: str, **options: Any) -> None:
        with pytest.raises(StageError, match=told):
            export.run(ExportConfig(**{"run": str(trained[1]), "out": str(tmp_path / "o")} | options))

    refused("no training run", run=str(tmp_path))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    refused(r"taken/config\.json was not written by `vig export`", out=str(tmp_path / "taken"))
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["config.json"]
    refused("without --lora", format="adapter")
    refused(r"no tokenizer\.model", format="llava")
    refused("no checkpoint with a held-out loss", step="best")
