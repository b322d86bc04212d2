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
from vig_ray.selection import export, job
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.export import ExportDataConfig, Exported
from vig_ray.training.collator import ActiveTokensCollator


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, demo_model: Any, demo_formatter: Any) -> Path:
    """60 demo samples, imported, scored and selected at p = 50."""
    out = tmp_path_factory.mktemp("scored")
    write_selected(out, demo_model, demo_formatter, samples=60, p=50)
    return out


def run(scored: Path, out: Path, **options: Any) -> Exported:
    given = {"selection": str(scored), "samples": str(scored / "samples")} | options
    return export.run(ExportDataConfig(out=str(out), **given))


def exported(scored: Path, tmp_path: Path, name: str, **options: Any) -> Any:
    out = tmp_path / name
    run(scored, out, **options)
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
    told = exported(scored, tmp_path, "told.jsonl")
    for row, number, told_row in zip(rows, numbers, told, strict=True):
        for key in ("active_spans", "token_ids", "token_weights"):  # which LLaVA's code doesn't read
            assert row[key] == told_row[key]
        assert row["conversations"] == original[number]["conversations"]
        assert row.get("image") == original[number].get("image")
    # And it is a dataset that this project reads.
    again = importing.run(ImportConfig(data=str(tmp_path / "out.json"), images=str(scored / "data"), out=str(tmp_path)))
    assert again.failed == 0


@pytest.mark.parametrize("format", ["messages", "sharegpt"])
def test_json_lines_are_datasets_that_this_project_reads(scored: Path, tmp_path: Path, format: str) -> None:
    tmp_path /= "not/there/yet"
    rows = exported(scored, tmp_path, "out.jsonl", format=format, samples_only=True)
    assert not rows[0].keys() & {"token_ids", "token_weights", "active_spans"}
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


@pytest.fixture(scope="module")
def by_prior(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scores selected by PRIOR: every sample, with real weights."""
    out = tmp_path_factory.mktemp("prior")
    job.run(SelectConfig(scores=str(scored), out=str(out), strategy="prior"))
    return out / "selection"


def test_parquet_and_json_lines_load_alike_with_datasets(scored: Path, by_prior: Path, tmp_path: Path) -> None:
    import datasets

    given = {"selection": str(by_prior)}
    loaded = []
    for kind, name in (("json", "out.jsonl"), ("parquet", "out.parquet")):
        run(scored, tmp_path / name, **given)
        rows = datasets.load_dataset(kind, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path))
        loaded.append(rows.to_list())
    for row in loaded[1]:  # where a struct has the text of an image, which is none
        for message in row["messages"]:
            message["content"] = [{k: v for k, v in part.items() if v is not None} for part in message["content"]]
    for row, exact in zip(*loaded, strict=True):
        assert row.pop("token_weights") == pytest.approx(exact["token_weights"], abs=1e-9)  # datasets rounds JSON's
        assert row | {"kept": None} == {name: exact[name] for name in exact if name != "token_weights"}
    weights = {row["sample_key"]: row["token_weights"] for row in pq.read_table(by_prior).to_pylist()}
    assert {row["sample_key"]: row["token_weights"] for row in loaded[1]} == weights
    assert sum(0 < weight < 1 for row in loaded[1] for weight in row["token_weights"]) > 10
    # As TRL's documentation has images: a column that opens them.
    opened = rows.cast_column("images", datasets.List(datasets.Image()))
    number = next(index for index, row in enumerate(loaded[1]) if row["images"])
    batch, same = (ActiveTokensCollator(CHECKPOINT, token_weights=True)([each[number]]) for each in (opened, rows))
    assert batch.keys() == same.keys()
    assert all(torch.equal(batch[name], same[name]) for name in same)


def test_swift_gets_each_answers_tokens_with_a_loss_scale_each(scored: Path, tmp_path: Path) -> None:
    chosen = {row["sample_key"]: row for row in selected(scored)}
    rows = exported(scored, tmp_path, "out.jsonl", format="swift")
    original = {row["sample_key"]: row for row in exported(scored, tmp_path, "messages.jsonl")}
    assert len(rows) == len(chosen)
    several = 0
    for row in rows:
        messages = json.loads(row["messages"])
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        of_key = chosen[row["sample_key"]]
        assert [token for answer in answers for token in answer["token_ids"]] == of_key["token_ids"]
        assert [scale for answer in answers for scale in answer["loss_scale"]] == of_key["token_weights"]
        assert all(answer["token_ids"][-1] == 2 for answer in answers)  # </s>
        asked = [message["content"] for message in messages if message["role"] == "user"]
        parts = [message["content"] for message in original[row["sample_key"]]["messages"] if message["role"] == "user"]
        assert asked == ["".join(part.get("text", "<image>") for part in content) for content in parts]
        assert row["images"] == original[row["sample_key"]]["images"]
        several += len(answers) > 1
    assert several


@pytest.mark.parametrize("format", ["llamafactory", "sharegpt", "axolotl"])
def test_a_trainer_without_weights_gets_them_left_out_only_when_told(scored: Path, tmp_path: Path, format: str) -> None:
    with pytest.raises(
        StageError, match=rf"--format {format}: can't say which tokens are trained, and data/\d+ .*--samples"
    ):
        run(scored, tmp_path / "o.jsonl", format=format)
    assert not (tmp_path / "o.jsonl").exists()
    rows = exported(scored, tmp_path, "o.jsonl", format=format, samples_only=True)
    assert len(rows) == len(selected(scored))
    job.run(SelectConfig(scores=str(scored), out=str(tmp_path / "whole"), strategy="vig-samples", p=50))
    whole = exported(scored, tmp_path, "w.jsonl", format=format, selection=str(tmp_path / "whole"))
    assert {row["sample_key"] for row in whole} == {row["sample_key"] for row in rows}


def test_axolotl_gets_the_file_of_each_image_in_its_message(scored: Path, tmp_path: Path) -> None:
    rows = exported(scored, tmp_path, "o.jsonl", format="axolotl", samples_only=True)
    original = exported(scored, tmp_path, "m.jsonl", samples_only=True)
    for row, other in zip(rows, original, strict=True):
        parts = [part for message in row["messages"] for part in message["content"]]
        assert [part["path"] for part in parts if part["type"] == "image"] == other["images"]
        assert [part.get("text") for part in parts] == [
            part.get("text") for message in other["messages"] for part in message["content"]
        ]


def test_what_a_trainer_does_otherwise_is_told(scored: Path, by_prior: Path, tmp_path: Path) -> None:
    assert "LLaVA's own code doesn't read token_weights" in run(scored, tmp_path / "o.json", format="llava").text()
    again = run(scored, tmp_path / "o.json", format="llava")
    assert "LLaVA's own code doesn't read token_weights" in again.text()
    with pytest.raises(StageError, match=r"--format swift: data/\d+ has weights other than 0 and 1"):
        run(scored, tmp_path / "o.jsonl", format="swift", selection=str(by_prior))
    with pytest.raises(StageError, match=r"--format llava is a JSON array; name a \.json"):
        run(scored, tmp_path / "o.parquet", format="llava")


def test_conversations_that_llamafactory_leaves_out_are_counted(scored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scored, copy)
    (path,) = (copy / "samples").glob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    keys = [row["sample_key"] for row in selected(copy)]
    for row in rows:
        if row["sample_key"] in keys[:3]:
            row["conversation"] = row["conversation"][1:]
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    told = run(
        copy, tmp_path / "o.jsonl", format="llamafactory", samples_only=True, samples=str(copy / "samples")
    ).text()
    assert "3 samples, " in told
    assert "aren't questions and answers in turn" in told


def test_what_was_kept_of_the_dataset_goes_along(scored: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    copy = tmp_path / "copy"
    shutil.copytree(scored, copy)
    for path in (copy / "samples").glob("*.parquet"):
        table = pq.read_table(path)
        pairs = [[{"name": "rating", "value": "4"}, {"name": "who", "value": '"a"'}]] * table.num_rows
        kind = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
        if "kept" in table.column_names:
            table = table.drop_columns("kept")
        pq.write_table(table.append_column("kept", pa.array(pairs, kind)), path)
    given = {"format": "sharegpt", "samples_only": True, "samples": str(copy / "samples")}
    run(copy, tmp_path / "o.jsonl", **given)
    assert json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["kept"] == {"rating": 4, "who": "a"}
    run(copy, tmp_path / "o.parquet", **given)
    assert pq.read_table(tmp_path / "o.parquet")["kept"][0].as_py() == pairs[0]


def test_samples_imported_again_with_other_columns_are_another_export(scored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scored, copy)
    data = ImportConfig(data=str(scored / "data" / "data.json"), out=str(copy), keep="id", overwrite=True)
    given = {"samples_only": True, "samples": str(copy / "samples")}
    run(copy, tmp_path / "o.jsonl", **given)
    importing.run(data)
    with pytest.raises(StageError, match="keep differ"):
        run(copy, tmp_path / "o.jsonl", **given)
    rows = exported(copy, tmp_path, "o.jsonl", overwrite=True, **given)
    assert all(row["kept"]["id"] is not None for row in rows)


def test_masks_are_refused_for_what_an_earlier_version_wrote_too(scored: Path, tmp_path: Path) -> None:
    """Which wrote ShareGPT's conversations without them."""
    run(scored, tmp_path / "o.jsonl", format="sharegpt", samples_only=True)
    record = tmp_path / "o.jsonl.stage.json"
    told = json.loads(record.read_text())
    del told["identity"]["options"]["samples_only"]
    record.write_text(json.dumps(told))
    with pytest.raises(StageError, match="--format sharegpt: can't say which tokens are trained"):
        run(scored, tmp_path / "o.jsonl", format="sharegpt")
