"""transformers' Trainer and TRL's SFTTrainer with token weights, against a loss that is written out plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer
from trl import SFTConfig, SFTTrainer

from tests.integrations.made import Row, expected, farthest, messages_rows, plain, weighted, write
from tests.integrations.trained import one_step, trainer_of
from vig_ray.demo import CHECKPOINT
from vig_ray.integrations.token_weights import _rows
from vig_ray.integrations.trl import ActiveTokensCollator
from vig_ray.training.objective import Totals, coefficients


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return messages_rows(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def checkpoints(qwen_checkpoint: str) -> dict[str, str]:
    return {"llava": CHECKPOINT, "qwen": qwen_checkpoint}


@pytest.mark.parametrize(
    ("family", "weights", "normalisation"),
    [
        ("llava", "masks", "tokens"),
        ("llava", "real", "samples"),
        ("qwen", "masks", "samples"),
        ("qwen", "real", "tokens"),
    ],
)
def test_accumulated_microbatches_give_the_loss_of_the_whole(
    family: str, weights: str, normalisation: str, rows: list[Row], checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """Qwen2.5-VL is one of the models that tell a Trainer that their loss takes no number of items."""
    checkpoint = checkpoints[family]
    given = weighted(rows, checkpoint, weights)
    wanted = expected(checkpoint, given, normalisation)
    assert max(float(gradient.abs().max()) for gradient in wanted.gradients.values()) > 1e-2
    for kind in ("transformers", "trl"):
        found = one_step(kind, checkpoint, given, tmp_path, normalisation=normalisation)
        assert found.loss == pytest.approx(wanted.loss, abs=1e-5), kind
        assert farthest(found.gradients, wanted.gradients) < 1e-5, kind


def test_the_plain_loss_is_the_objectives(rows: list[Row], checkpoints: dict[str, str]) -> None:
    """What the trainers are held against is what `vig train` computes."""
    checkpoint = checkpoints["qwen"]
    given = weighted(rows, checkpoint, "real")
    weights = [np.asarray(row["token_weights"], dtype=np.float32) for row in given]
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    whole = 0.0
    with torch.no_grad():
        for row, each in zip(given, weights, strict=True):
            inputs, answers = plain(checkpoint, row)
            logp = model(**inputs, use_cache=False).logits[0].log_softmax(-1)
            at = torch.tensor(answers)
            nll = -logp[at - 1, inputs["input_ids"][0, at]].numpy()
            whole += float((coefficients(each, Totals.of(weights), "samples") * nll).sum())
    assert expected(checkpoint, given, "samples").loss == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_evaluation_is_the_loss_of_its_batches(
    kind: str, rows: list[Row], checkpoints: dict[str, str], tmp_path: Path
) -> None:
    given = weighted(rows, CHECKPOINT, "real")
    trainer = trainer_of(kind, CHECKPOINT, given, tmp_path)
    wanted = expected(CHECKPOINT, given).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_adapters_begin_at_the_loss_of_their_model(kind: str, rows: list[Row], tmp_path: Path) -> None:
    given = weighted(rows, CHECKPOINT, "real")
    found = one_step(kind, CHECKPOINT, given, tmp_path, lora=True)
    assert found.loss == pytest.approx(expected(CHECKPOINT, given).loss, abs=1e-5)
    assert any("lora_B" in name and gradient.any() for name, gradient in found.gradients.items())


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_weights_land_on_the_scored_tokens_among_expanded_images(
    family: str, rows: list[Row], checkpoints: dict[str, str]
) -> None:
    """In a batch of samples with one image, two and none, whose features stand in the sequence one by one."""
    checkpoint = checkpoints[family]
    given = weighted(rows, checkpoint, "real")
    batch = ActiveTokensCollator(checkpoint, token_weights=True)(given)
    expanded = 0
    for index, row in enumerate(given):
        inputs, answers = plain(checkpoint, row)
        ids = inputs["input_ids"][0]
        assert torch.equal(batch["input_ids"][index, : len(ids)], ids)
        wanted = torch.zeros(batch["input_ids"].shape[1])
        wanted[answers] = torch.tensor(row["token_weights"], dtype=torch.float32)
        assert torch.equal(batch["token_weights"][index], wanted)
        trained = wanted != 0
        assert torch.equal(batch["labels"][index] != -100, trained)
        assert torch.equal(batch["labels"][index][trained], batch["input_ids"][index][trained])
        expanded += len(ids) > 20 * len(row["images"]) > 0
    assert expanded


def test_what_would_make_another_loss_is_refused(rows: list[Row], checkpoints: dict[str, str], tmp_path: Path) -> None:
    given = weighted(rows, CHECKPOINT, "masks")[:2]

    def refused(told: str, kind: str = "transformers", **options: Any) -> None:
        with pytest.raises(ValueError, match=told):
            trainer_of(kind, CHECKPOINT, given, tmp_path, **options)

    refused("label_smoothing_factor", label_smoothing_factor=0.1)
    refused("loss_type dft", "trl", loss_type="dft")
    refused("average_tokens_across_devices", "trl", average_tokens_across_devices=False)
    trainer = trainer_of("transformers", CHECKPOINT, given, tmp_path)
    trainer.data_collator = ActiveTokensCollator(CHECKPOINT)
    with pytest.raises(ValueError, match="no token_weights in a batch"):
        trainer.train()


def test_rows_without_weights_are_what_trl_reads_by_itself(
    rows: list[Row], qwen_checkpoint: str, tmp_path: Path
) -> None:
    """By its own collator, which trains everything; images as its documentation has them."""
    write(rows, "messages", tmp_path / "chosen.jsonl")
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "chosen.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    ).cast_column("images", datasets.List(datasets.Image()))
    arguments = SFTConfig(
        str(tmp_path / "out"), per_device_train_batch_size=8, max_steps=1, logging_steps=1, max_length=None,
        report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
    )  # fmt: skip
    trainer = SFTTrainer(qwen_checkpoint, arguments, train_dataset=loaded)
    trainer.train()
    seen = trainer.state.log_history[0]["num_tokens"]
    assert seen == sum(plain(qwen_checkpoint, row).inputs["input_ids"].numel() for row in rows)


@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_coefficients_stay_float32_where_floats_are_cast(
    kind: str, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Trainer with DeepSpeed casts all floats of a batch to its dtype; in half precision 4e-9 is 0."""
    small = 0.001 / 262144
    given = weighted(rows, CHECKPOINT, "real")
    given = [row | {"token_weights": [small * each for each in row["token_weights"]]} for row in given]
    trainer = trainer_of(kind, CHECKPOINT, given, tmp_path)
    prepare = Trainer._prepare_input

    def cast(self: Any, data: Any) -> Any:
        data = prepare(self, data)
        floating = isinstance(data, torch.Tensor) and data.is_floating_point()
        return data.half() if floating and data.shape[1:2] != (3,) else data  # but for the images

    monkeypatch.setattr(Trainer, "_prepare_input", cast)
    wanted = expected(CHECKPOINT, given).loss
    assert 0 < wanted < 1e-7
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-4)
    found: list[float] = []
    loss_of = trainer.compute_loss

    def kept(*args: Any, **options: Any) -> Any:
        loss = loss_of(*args, **options)
        found.append(float(loss.detach()))
        return loss

    trainer.compute_loss = kept
    trainer.train()
    assert sum(found) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("wrong", ["negative", "not a number", "not trained", "first"])
def test_weights_that_the_loss_would_leave_out_are_refused(wrong: str) -> None:
    labels = torch.tensor([[5, 6, 7, -100]])
    weights = torch.tensor([[0.0, 1.0, 0.5, 0.0]])
    assert len(_rows({"labels": labels, "token_weights": weights})) == 1
    place, value = {"negative": (1, -1.0), "not a number": (1, np.nan), "not trained": (3, 1.0), "first": (0, 1.0)}[
        wrong
    ]
    weights[0, place] = value
    with pytest.raises(ValueError, match="token_weights: negative, or not 0 where nothing is trained"):
        _rows({"labels": labels, "token_weights": weights})
