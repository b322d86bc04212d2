"""Speed of `vig train-text` beside transformers.Trainer's: `python -m benchmarks.train_text`.

A Llama of 4 layers of 256 on captions of CapsFusion's lengths (lognormal, 32 tokens in the middle, 8 to 160), float32,
as many captions a step, the same optimizer, one process. The Trainer gets token ids made beforehand, padded to the
longest of a pass, in random order and sorted by length (its `group_by_length`), in whatever number of passes a step
suits it best; this project makes its tokens itself, on the way. Rates count whole steps with the wait for samples,
without the first ones. The ways take turns, and their median rates are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vig_ray.dataset import importing
from vig_ray.model.load import load_model
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.documents import Documents
from vig_ray.training.index import of_samples
from vig_ray.training.metrics import SilentLogger
from vig_ray.training.run import Setup
from vig_ray.training.text_config import TrainTextConfig
from vig_ray.training.worker import train

WORDS = 8000
LEFT_OUT = 2  # first steps, in which everything is warmed up


class Work(NamedTuple):
    """A language model, samples/, and their documents as token ids."""

    model: str
    samples: str
    documents: list[list[int]]


def write_model(folder: Path) -> str:
    """A Llama with random weights, whose tokens are words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{word}": 3 + word for word in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
        model_max_length=2048,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=256, intermediate_size=688, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def make_work(folder: Path, count: int) -> Work:
    """Captions of words drawn as often as words of a language are."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(32), 0.45, count), 8, 160).astype(int)
    captions = [np.minimum(rng.zipf(1.3, length), WORDS) - 1 for length in lengths]
    rows = [
        {
            "id": str(number),
            "conversations": [
                {"from": "human", "value": "Describe it."},
                {"from": "gpt", "value": " ".join(f"w{word}" for word in caption)},
            ],
        }
        for number, caption in enumerate(captions)
    ]
    (folder / "captions.json").write_text(json.dumps(rows))
    imported = importing.run(importing.ImportConfig(data=str(folder / "captions.json"), out=str(folder)))
    documents = [[0, *(3 + caption).tolist(), 1] for caption in captions]
    return Work(write_model(folder / "model"), imported.directory, documents)


def ours(work: Work, *, steps: int, batch: int, length: int, packing: bool = True) -> float:
    """Captions/s of this project."""
    config = TrainTextConfig(
        model=work.model, samples=work.samples, out="-", max_steps=steps, global_batch=batch, length=length, lr=2e-5,
        save_every=10**6, packing=packing,
    )  # fmt: skip
    documents = Documents(work.model, config.context, config.length)
    index = of_samples(work.samples, config.seed)
    setup = Setup(config, documents, index, work.samples, None, "float32", 0, length, False)
    distributed = DistributedContext(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as out:
        run = train(setup, distributed, CheckpointManager(out, keep=1, distributed=distributed), SilentLogger())
    lines = run.log[LEFT_OUT:]
    return float(sum(line["samples"] for line in lines) / sum(line["seconds"] for line in lines))


def padded(documents: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Documents to the tensors of a pass."""
    longest = max(len(each["input_ids"]) for each in documents)
    ids = torch.full((len(documents), longest), 2)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(documents):
        ids[row, : len(each["input_ids"])] = torch.tensor(each["input_ids"])
        mask[row, : len(each["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def theirs(work: Work, *, steps: int, batch: int, grouped: bool, passes: int = 1) -> float:
    """Captions/s of transformers.Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class Grouped(Trainer):  # its own grouping wants a `datasets` dataset
        def _get_train_sampler(self, *_: Any) -> Any:
            return LengthGroupedSampler(batch // passes, lengths=[len(each) for each in work.documents])

    ended: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.monotonic())

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, per_device_train_batch_size=batch // passes, gradient_accumulation_steps=passes,
            max_steps=steps, learning_rate=2e-5, lr_scheduler_type="cosine", warmup_steps=0.03,
            remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = (Grouped if grouped else Trainer)(
            load_model(work.model, dtype="float32", device="cpu", text_only=True), arguments,
            train_dataset=[{"input_ids": each} for each in work.documents], data_collator=padded,
        )  # fmt: skip
        trainer.add_callback(Clock())
        trainer.train()
    return (len(ended) - LEFT_OUT) * batch / (ended[-1] - ended[LEFT_OUT - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row; on a GPU the default is 8192")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    given = {"steps": options.steps, "batch": options.batch}
    with tempfile.TemporaryDirectory() as name:
        work = make_work(Path(name), options.samples)
        ways = {
            "Trainer, random order": lambda: theirs(work, grouped=False, **given),
            "Trainer, random order, 4 passes": lambda: theirs(work, grouped=False, passes=4, **given),
            "Trainer, grouped by length": lambda: theirs(work, grouped=True, **given),
            "Trainer, grouped, 4 passes": lambda: theirs(work, grouped=True, passes=4, **given),
            "vig-ray, padded": lambda: ours(work, length=options.length, packing=False, **given),
            "vig-ray, packed": lambda: ours(work, length=options.length, **given),
        }
        seen: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, measure in ways.items():
                seen[way].append(measure())
    medians = {way: statistics.median(rates) for way, rates in seen.items()}
    for way, rate in medians.items():
        print(f"{way:34} {rate:7.1f} captions/s   {rate / medians['vig-ray, packed']:5.2f} of packed")
    for kind in ("random order", "grouped"):
        best = max(rate for way, rate in medians.items() if way.startswith(f"Trainer, {kind}"))
        print(f"packed: {medians['vig-ray, packed'] / best:5.2f} of the Trainer's best, {kind}")


if __name__ == "__main__":
    main()
