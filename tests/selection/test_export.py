"""Selections in the formats of other trainers, read back, and a real transformers.Trainer fed with one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.oracle import plain_logprobs
from tests.selection.made import selected, write_selected
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.model.load import load_model
from vig_ray.selection import export
from vig_ray.selection.export import ExportDataConfig
from vig_ray.training.collator import ActiveTokensCollator


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, demo_model: Any, demo_formatter: Any) -> Path:
    """60 demo samples, imported, scored and selected at p = 50."""
    out = tmp_path_factory.mktemp("scored")
    write_selected(out, demo_model, demo_formatter, samples=60, p=50)
    return out


def exported(scored: Path, tmp_path: Path, name: str, **options: Any) -> Any:
    out = tmp_path / name
    export.run(ExportDataConfig(selection=str(scored), samples=str(scored / "samples"), out=str(out), **options))
    text = out.read_text()
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def test_llava_comes_back_as_it_went_in(scored: Path, tmp_path: Path) -> None:
    original = json.loads((scored / "data" / "data.json").read_text())
    rows = exported(scored, tmp_path, "out.json", format="llava", images=str(scored / "data"))
    kept = {row["sample_key"] for row in selected(scored)}
    samples = [
        key
        for path in sorted((scored / "samples").glob("*.parquet"))
        for key in pq.read_table(path)["sample_key"].to_pylist()
    ]
    numbers = [int(key.rsplit("/", 1)[1]) for key in samples if key in kept]
    assert len(rows) == len(numbers) == len(kept)
    for row, number in zip(rows, numbers, strict=True):
        assert row["conversations"] == original[number]["conversations"]
        assert row.get("image") == original[number].get("image")
    # And it is a dataset that this project reads.
    again = importing.run(ImportConfig(data=str(tmp_path / "out.json"), images=str(scored / "data"), out=str(tmp_path)))
    assert again.failed == 0


@pytest.mark.parametrize("format", ["messages", "sharegpt"])
def test_json_lines_are_datasets_that_this_project_reads(scored: Path, tmp_path: Path, format: str) -> None:
    tmp_path /= "not/there/yet"
    rows = exported(scored, tmp_path, "out.jsonl", format=format)
    assert len(rows) == len(selected(scored))
    again = importing.run(
        ImportConfig(data=str(tmp_path / "out.jsonl"), images=str(scored / "data"), out=str(tmp_path / "again"))
    )
    assert again.failed == 0


def test_active_spans_are_the_characters_of_active_tokens(scored: Path, tmp_path: Path, demo_formatter: Any) -> None:
    rows = exported(scored, tmp_path, "out.jsonl")
    weights = {row["sample_key"]: row for row in selected(scored)}
    some = 0
    for row in rows:
        chosen = weights[row["sample_key"]]
        assert row["token_weights"] == chosen["token_weights"]
        assert row["token_ids"] == chosen["token_ids"]
        assert row["position"] == chosen["position"]
        answers = [
            "".join(part["text"] for part in message["content"])
            for message in row["messages"]
            if message["role"] == "assistant"
        ]
        marked = [answers[span["turn"]][span["start"] : span["end"]] for span in row["active_spans"]]
        pieces = demo_formatter.tokenizer.convert_ids_to_tokens(row["token_ids"])
        expected = "".join(
            piece.replace("▁", " ")
            for piece, weight in zip(pieces, row["token_weights"], strict=True)
            if weight > 0 and piece != "</s>"
        )
        assert "".join("".join(marked).split()) == "".join(expected.split())
        some += bool(marked) and len("".join(marked)) < len("".join(answers))
    assert some > 10


def test_images_that_are_bytes_are_written_out(scored: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    copy = tmp_path / "copy"
    shutil.copytree(scored, copy)
    for path in (copy / "samples").glob("*.parquet"):
        table = pq.read_table(path).to_pylist()
        for row in table:
            row["images"] = [{"uri": None, "bytes": Path(image["uri"]).read_bytes()} for image in row["images"]]
        import pyarrow as pa

        pq.write_table(pa.Table.from_pylist(table, schema=pq.read_schema(path)), path)
    rows = exported(copy, tmp_path, "out.jsonl")
    originals = {row["sample_key"]: row["images"] for row in exported(scored, tmp_path, "paths.jsonl")}
    assert any(originals.values())
    for row in rows:
        for path, original in zip(row["images"], originals[row["sample_key"]], strict=True):
            assert path != original
            assert Path(path).suffix == ".png"
            assert Path(path).read_bytes() == Path(original).read_bytes()


def test_wrong_pairs_are_one_line(scored: Path, tmp_path: Path, qwen_checkpoint: str) -> None:
    def refused(told: str, **options: Any) -> None:
        given = {"selection": str(scored), "samples": str(scored / "samples"), "out": str(tmp_path / "o.jsonl")}
        with pytest.raises(StageError, match=told):
            export.run(ExportDataConfig(**(given | options)))
        assert not (tmp_path / "o.jsonl").exists()

    refused("no selection here", selection=str(tmp_path))
    refused("no samples here", samples=str(tmp_path))
    refused("isn't the one that the scores were made with", model=qwen_checkpoint)
    other = tmp_path / "other"
    importing.run(ImportConfig(data=world.write(str(other / "data"), 20, 5), out=str(other)))
    refused("not the samples", samples=str(other / "samples"))
    (tmp_path / "taken.jsonl").write_text("")
    refused("not written by `vig export-data`", out=str(tmp_path / "taken.jsonl"))
    refused("not written by `vig export-data`", out=str(tmp_path / "taken.jsonl"), overwrite=True)
    assert (tmp_path / "taken.jsonl").read_text() == ""


def test_a_real_trainer_counts_the_active_tokens_only(scored: Path, tmp_path: Path) -> None:
    """The first loss of transformers' own Trainer is the mean over active tokens of the plain forward's."""
    from transformers import AutoImageProcessor, Trainer, TrainingArguments

    rows = [row for row in exported(scored, tmp_path, "out.jsonl") if row["images"] and any(row["token_weights"])][:8]
    model = load_model(CHECKPOINT, dtype="float32", device="cpu")
    collator = ActiveTokensCollator(CHECKPOINT)
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")  # as LLaVA does
    losses: list[float] = []
    for row in rows:
        prompt = collator._formatter.prompt(
            [*map(_turn, row["messages"])], [collator._image(path) for path in row["images"]]
        )
        logp = plain_logprobs(model, processor, prompt, [Image.open(path) for path in row["images"]])
        losses += (-logp[np.asarray(row["token_weights"]) > 0]).tolist()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trained"),
        per_device_train_batch_size=8,
        max_steps=2,
        logging_steps=1,
        learning_rate=5e-5,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] == pytest.approx(np.mean(losses), rel=1e-3)
    assert logged[1] < logged[0]


def _turn(message: dict[str, Any]) -> Any:
    from vig_ray.training.collator import _turns

    return _turns([message])[0]


def test_the_collator_refuses_what_labels_cannot_say(scored: Path, tmp_path: Path) -> None:
    (row, *_) = exported(scored, tmp_path, "out.jsonl")
    collator = ActiveTokensCollator(CHECKPOINT)
    with pytest.raises(ValueError, match="weighted loss"):
        collator([row | {"token_weights": [0.5] * len(row["token_weights"])}])
    with pytest.raises(ValueError, match="other tokens"):
        collator([row | {"token_weights": [1.0] * 999}])
    batch = collator([row | {"token_weights": None}, row])
    assert (batch["labels"][0] >= 0).sum() == len(row["token_ids"])
    assert (batch["labels"][1] >= 0).sum() == sum(row["token_weights"])
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
