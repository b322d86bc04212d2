"""Files of ours read by the dataset code of ms-swift, LLaMA-Factory and Axolotl; `make test-trainers` has them.

Each in small: a Qwen2.5-VL and a LLaVA-1.5 (ms-swift), rows with one image, two and none, several turns.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from tests.integrations.made import Row, messages_rows, plain, processor_of, weighted, write
from vig_ray.demo import CHECKPOINT

pytestmark = pytest.mark.long


def needs(package: str, distribution: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"{distribution} isn't installed here; make test-trainers has it")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return messages_rows(tmp_path_factory.mktemp("pictures"))


def answers_of(row: Row) -> list[str]:
    return [message["content"][0]["text"] for message in row["messages"] if message["role"] == "assistant"]


@pytest.fixture(scope="module")
def swift_plugin() -> None:
    """As `--external_plugins` loads it."""
    from swift.utils import import_external_file

    import vig_ray.integrations.ms_swift as ours

    import_external_file(f"{ours.__path__[0]}/plugin.py")


@needs("swift", "ms-swift")
@pytest.mark.parametrize(("family", "weights"), [("llava", "masks"), ("qwen", "masks"), ("qwen", "real")])
def test_ms_swift_trains_the_scored_tokens_by_their_weights(
    family: str, weights: str, rows: list[Row], qwen_checkpoint: str, swift_plugin: None, tmp_path: Path
) -> None:
    from swift import get_processor, get_template
    from swift.dataset import load_dataset

    checkpoint, kind, template_type = (
        (CHECKPOINT, "llava1_5_hf", "llava1_5_hf")
        if family == "llava"
        else (qwen_checkpoint, "qwen2_5_vl", "qwen2_5_vl")
    )
    given = weighted(rows, checkpoint, weights)
    dataset, _ = load_dataset([str(write(given, "swift", tmp_path / "chosen.jsonl", checkpoint))], strict=True)
    template = get_template(
        get_processor(checkpoint, model_type=kind, download_model=False),
        template_type=template_type,
        loss_scale="vig",
        is_binary_loss_scale=weights == "masks",
    )
    template.set_mode("train")
    if family == "qwen":  # the small tokenizer's, in the place of the real one's
        template.image_token_id = processor_of(checkpoint).tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert len(dataset) == len(given)
    for row, read in zip(given, dataset, strict=True):
        encoded = template.encode(dict(read))
        inputs, answers = plain(checkpoint, row)
        ids = inputs["input_ids"][0, answers].numpy()
        wanted = np.asarray(row["token_weights"], dtype=np.float32)
        labels, input_ids = np.asarray(encoded["labels"]), np.asarray(encoded["input_ids"])
        at = np.flatnonzero(labels != -100)
        assert labels[at].tolist() == input_ids[at].tolist() == ids[wanted > 0].tolist(), row["sample_key"]
        if weights == "real":
            scales = np.asarray(encoded["loss_scale"], dtype=np.float32)
            assert np.array_equal(scales[at], wanted[wanted > 0])
            assert len(scales) == len(labels)
            assert np.count_nonzero(scales) == len(at)
        turns = [turn.tolist() for turn in np.split(ids, np.flatnonzero(ids == ids[-1])[:-1] + 1)]
        for turn in turns:  # each answer stands there as it was scored, its end of turn once
            text = " ".join(map(str, input_ids.tolist()))
            assert f" {' '.join(map(str, turn))}" in text
        assert (input_ids == ids[-1]).sum() >= len(turns)


@needs("swift", "ms-swift")
def test_a_step_of_ms_swift_counts_the_active_tokens_only(rows: list[Row], swift_plugin: None, tmp_path: Path) -> None:
    """`swift sft`: its loss is the mean over active tokens of a plain forward of what its template gives."""
    from swift import SftArguments, get_processor, get_template, sft_main

    import vig_ray.integrations.ms_swift as ours

    given = [row for row in weighted(rows, CHECKPOINT, "masks") if any(row["token_weights"])]  # it logs 0 / 0, too
    path = write(given, "swift", tmp_path / "chosen.jsonl", CHECKPOINT)
    kind = {"model_type": "llava1_5_hf"}
    template = get_template(get_processor(CHECKPOINT, download_model=False, **kind), loss_scale="vig")
    template.set_mode("train")
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32)
    losses: list[float] = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        encoded = template.encode({"messages": json.loads(row["messages"]), "images": row["images"]})
        ids, labels = torch.tensor(encoded["input_ids"]), torch.tensor(encoded["labels"])
        pixels = {name: encoded[name] for name in ("pixel_values",) if name in encoded}
        with torch.no_grad():
            logp = model(input_ids=ids[None], **pixels).logits[0].log_softmax(-1)
        at = (labels != -100).nonzero().squeeze(1)
        losses += (-logp[at - 1, ids[at]]).tolist()
    arguments = SftArguments(
        model=CHECKPOINT, template="llava1_5_hf", dataset=[str(path)], loss_scale="vig", strict=True,
        external_plugins=[f"{ours.__path__[0]}/plugin.py"], tuner_type="full", torch_dtype="float32",
        freeze_vit=False, per_device_train_batch_size=1, gradient_accumulation_steps=8, max_steps=1, logging_steps=1,
        output_dir=str(tmp_path / "out"), save_strategy="no", report_to=[], use_cpu=True, split_dataset_ratio=0,
        gradient_checkpointing=False, attn_impl="sdpa", use_hf=True, **kind,
    )  # fmt: skip
    (logged, *_) = sft_main(arguments)["log_history"]
    assert logged["loss"] == pytest.approx(np.mean(losses), abs=1e-4)


@needs("llamafactory", "LLaMA-Factory")
def test_llamafactory_trains_all_answers_of_the_samples(
    rows: list[Row], qwen_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    if importlib.util.find_spec("torchaudio") is None:  # for audio, of which there is none here
        monkeypatch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import Seq2SeqTrainingArguments

    write(rows, "llamafactory", tmp_path / "chosen.jsonl")
    columns = {"messages": "conversations", "images": "images"}
    entry = {"file_name": "chosen.jsonl", "formatting": "sharegpt", "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"chosen": entry}))
    processor = processor_of(qwen_checkpoint)
    data = DataArguments(template="qwen2_vl", dataset="chosen", dataset_dir=str(tmp_path), cutoff_len=4096)
    data.dataset, data.eval_dataset = ["chosen"], None
    template = get_template_and_fix_tokenizer(processor.tokenizer, data)
    training = Seq2SeqTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    model = SimpleNamespace(cache_dir=str(tmp_path / "cache"), hf_hub_token=None)
    (made,) = get_dataset(template, model, data, training, "sft", processor.tokenizer, processor).values()
    assert len(made) == len(rows)
    for row, encoded in zip(rows, made, strict=True):
        labels = torch.tensor(encoded["labels"])
        text = processor.tokenizer.decode(labels[labels != -100])
        assert text == "".join(f"{answer}<|im_end|>\n" for answer in answers_of(row))
        assert (encoded["images"] or []) == row["images"]


@needs("axolotl", "Axolotl")
def test_axolotl_trains_all_answers_of_the_samples(rows: list[Row], qwen_checkpoint: str, tmp_path: Path) -> None:
    import datasets
    from axolotl.processing_strategies import Qwen2VLProcessingStrategy
    from axolotl.utils.collators.mm_chat import MultiModalChatDataCollator

    path = write(rows, "axolotl", tmp_path / "chosen.jsonl")
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    processor = AutoProcessor.from_pretrained(qwen_checkpoint)
    # Decodes files by Pillow: torchvision's compiled part isn't everywhere.
    processor.image_processor = AutoImageProcessor.from_pretrained(qwen_checkpoint, backend="pil")
    collate = MultiModalChatDataCollator(
        tokenizer=processor.tokenizer, processing_strategy=Qwen2VLProcessingStrategy(processor)
    )
    with_images = [row for row in loaded if any(part["type"] == "image" for part in row["messages"][0]["content"])]
    batch = collate(with_images)
    assert len(batch["image_grid_thw"]) == sum(len(row["images"]) for row in rows)
    chosen = [row for row in rows if row["images"]]
    for row, labels in zip(chosen, batch["labels"], strict=True):
        text = processor.tokenizer.decode(labels[labels != -100])
        assert text == "".join(f"{answer}<|im_end|>" for answer in answers_of(row))
