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
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.beside_trainer import Data, medians, ours, trainers
from vig_ray.dataset import importing
from vig_ray.model.load import load_model
from vig_ray.training.documents import Documents
from vig_ray.training.index import of_samples
from vig_ray.training.run import Setup
from vig_ray.training.text_config import TrainTextConfig

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


def own(work: Work, *, steps: int, batch: int, length: int, packing: bool = True) -> float:
    """Captions/s of this project."""
    config = TrainTextConfig(
        model=work.model, samples=work.samples, out="-", max_steps=steps, global_batch=batch, length=length, lr=2e-5,
        save_every=10**6, packing=packing,
    )  # fmt: skip
    documents = Documents(work.model, config.context, config.length)
    index = of_samples(work.samples, config.seed)
    setup = Setup(config, documents, index, work.samples, None, "float32", 0, length, False)
    return ours(setup, LEFT_OUT)


def padded(documents: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Documents to the tensors of a pass."""
    longest = max(len(each["input_ids"]) for each in documents)
    ids = torch.full((len(documents), longest), 2)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(documents):
        ids[row, : len(each["input_ids"])] = torch.tensor(each["input_ids"])
        mask[row, : len(each["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def theirs(work: Work, **given: Any) -> float:
    """Captions/s of transformers.Trainer."""
    model = load_model(work.model, dtype="float32", device="cpu", text_only=True)
    rows = [{"input_ids": each} for each in work.documents]
    return trainers(model, Data(rows, [len(each) for each in work.documents], padded), left_out=LEFT_OUT, **given)


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
            "vig-ray, padded": lambda: own(work, length=options.length, packing=False, **given),
            "vig-ray, packed": lambda: own(work, length=options.length, **given),
        }
        rates = medians(ways, options.rounds)
    packed = rates["vig-ray, packed"]
    for way, rate in rates.items():
        print(f"{way:34} {rate:7.1f} captions/s   {rate / packed:5.2f} of packed")
    for kind in ("random order", "grouped"):
        best = max(rate for way, rate in rates.items() if way.startswith(f"Trainer, {kind}"))
        print(f"packed: {packed / best:5.2f} of the Trainer's best, {kind}")


if __name__ == "__main__":
    main()
