"""`vig train-text`: documents packed and trained on are documents trained on one by one, whoever does it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.command import call, refused
from tests.selection.made import copy_outputs
from tests.training.runs import alone, left_by, together, weights_of
from tests.training.texts import document, plain_text_training, text_setup, write_llama
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_model
from vig_ray.tables.rows import Rows
from vig_ray.training import export, text_job
from vig_ray.training.batch import Batcher, TrainingSample
from vig_ray.training.config import VDEP_OPTIONS, TrainConfig
from vig_ray.training.export import ExportConfig
from vig_ray.training.loader import TEXT_COLUMNS, Unusable
from vig_ray.training.options import TrainingOptions
from vig_ray.training.text_config import TrainTextConfig
from vig_ray.training.training_model import TrainingModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("language-model"))


@pytest.fixture(scope="module")
def samples(chosen: Path) -> Path:
    return chosen / "samples"


def largest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


WAYS: dict[str, dict[str, Any]] = {
    "packed": {},
    "rows of 64 tokens": {"length": 64},
    "padded": {"packing": False},
    "the conversation": {"context": "conversation"},
    "one sample a pass, recomputed": {"micro_batch": 1, "activation_checkpointing": "on"},
}


@pytest.mark.parametrize("way", WAYS)
def test_documents_are_trained_on_as_one_by_one(samples: Path, model: str, tmp_path: Path, way: str) -> None:
    setup = text_setup(samples, model, **WAYS[way])
    run = alone(setup, tmp_path)
    losses, expected = plain_text_training(setup)
    assert not any(line["unusable"] for line in run.log)
    assert run.packed == (way != "padded")
    assert [line["loss"] for line in run.log] == pytest.approx(losses, abs=1e-5)
    worst = largest(weights_of(run), expected)
    print(f"largest difference of a weight: {worst:.1e}")
    assert worst < 1e-5
    assert losses[-1] < losses[0] - 0.3


def test_two_workers_train_as_one(samples: Path, model: str, tmp_path: Path) -> None:
    setups = {"one": text_setup(samples, model), "adapters": text_setup(samples, model, lora=True, lora_rank=4)}
    found = together(2, tmp_path, setups)
    for name, setup in setups.items():
        run = alone(setup, tmp_path / f"{name}-alone")
        assert [line["loss"] for line in found[name]["log"]] == pytest.approx(
            [line["loss"] for line in run.log], abs=1e-5
        )
        assert largest(found[name]["weights"], weights_of(run)) < 1e-5


@pytest.mark.parametrize("context", ["answer", "conversation"])
def test_a_document_is_what_the_tokenizer_makes_of_its_texts(samples: Path, model: str, context: str) -> None:
    setup = text_setup(samples, model, context=context)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = Rows(str(samples), TEXT_COLUMNS).get(setup.index.sample_at[:40])
    loaded = setup.source().__getitems__(range(40))
    assert any(len(row["conversation"]) > 2 for row in rows)
    for row, sample in zip(rows, loaded, strict=True):
        assert isinstance(sample, TrainingSample)
        ids, labels = document(tokenizer, row["conversation"], context)
        assert sample.prompt.token_ids.tolist() == ids
        assert sample.prompt.answer_positions.tolist() == [at for at, label in enumerate(labels) if label != -100]
        assert not sample.prompt.images
        assert "<image>" not in tokenizer.decode(ids)


def test_packed_documents_do_not_see_each_other(samples: Path, model: str) -> None:
    setup = text_setup(samples, model)
    first, second, third = (each for each in setup.source().__getitems__(range(3)) if isinstance(each, TrainingSample))
    loaded = load_model(model, dtype="float32", device="cpu", text_only=True)
    formatter = setup.source().formatter
    batcher = Batcher(loaded, formatter.collate, device="cpu", dtype=torch.float32, packed=True)
    training_model = TrainingModel(loaded, pack=True, train=("language",)).eval()

    def nll_of(*documents: TrainingSample) -> list[np.ndarray[Any, Any]]:
        with torch.no_grad():
            _, nll_N = training_model(batcher(documents, [each.weights_T for each in documents]))
        return np.split(nll_N.numpy(), np.cumsum([len(each.weights_T) for each in documents])[:-1])

    (alone_,) = nll_of(second)
    for others in ((first, second), (third, second), (second, second)):
        np.testing.assert_allclose(nll_of(*others)[1], alone_, atol=1e-5)
    ids = torch.from_numpy(second.prompt.token_ids.astype(np.int64))[None]
    plain = AutoModelForCausalLM.from_pretrained(model)
    logp_LV = plain(input_ids=ids).logits[0].log_softmax(-1)
    expected = [-logp_LV[at - 1, ids[0, at]].item() for at in second.prompt.answer_positions]
    np.testing.assert_allclose(alone_, expected, atol=1e-5)


def test_a_longer_document_is_left_out_and_told(samples: Path, model: str, tmp_path: Path) -> None:
    setup = text_setup(samples, model, length=20, max_steps=3)
    every = setup.source().__getitems__(range(24))
    longer = [each for each in every if isinstance(each, Unusable)]
    assert 0 < len(longer) < 24
    assert "TooLong" in longer[0].cause
    assert "a document has 20 at most" in longer[0].cause
    whole = text_setup(samples, model).source().__getitems__(range(24))
    lengths = [each.length for each in whole if isinstance(each, TrainingSample)]
    assert len(longer) == sum(length > 20 for length in lengths)
    run = alone(setup, tmp_path)
    assert {key for line in run.log for key in line["unusable"]} == {each.key for each in longer}
    assert sum(line["samples"] for line in run.log) == 24 - len(longer)


def test_the_model_that_is_written_is_a_language_model(samples: Path, model: str, tmp_path: Path) -> None:
    run = alone(text_setup(samples, model, max_steps=3), tmp_path / "run" / "training" / "checkpoints")
    out = left_by(run, tmp_path / "run", stage="train-text")
    exported = tmp_path / "exported"
    export.run(ExportConfig(run=str(out), out=str(exported)))
    expected = weights_of(run)
    for folder in (out / "model", exported):
        loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert type(loaded).__name__ == "LlamaForCausalLM"
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert largest(loaded.state_dict(), expected) == 0
        ours, theirs = (AutoTokenizer.from_pretrained(each)("a red circle") for each in (folder, model))
        assert ours["input_ids"] == theirs["input_ids"]
    told = refused("export", "--run", str(out), "--out", str(tmp_path / "llava"), "--format", "llava")
    assert "takes no images" in told


def test_its_options_are_those_of_all_training_and_its_own() -> None:
    """Whoever gives `vig train` another option decides here whether it has a meaning for a language model alone."""
    shared = list(TrainingOptions.model_fields)
    assert list(TrainTextConfig.model_fields) == [*shared, "context", "length", "sample", "exclude"]
    only_with_images = {*TrainConfig.model_fields} - {*shared}
    assert {name for name in only_with_images if name.startswith("vdep_")} == {*VDEP_OPTIONS}
    assert sorted(only_with_images) == sorted(itertools.chain(*TrainConfig.shown_behind.values()))
    printed = call("train", "--help").stdout
    places = [
        printed.index(f"\n  --{name} ")
        for name in ("stage", "model", "samples", "selection", "out", "align", "held-out")
    ]
    assert places == sorted(places)
    for name in ("batch_tokens", "selection", "train"):
        with pytest.raises(ValueError, match=name):
            TrainTextConfig(model="m", samples="s", out="o", **{name: "language"})
    config = TrainTextConfig(model="m", samples="s", out="o")
    assert (config.rates["language"], config.leading_rate, config.to_train) == (2e-5, 2e-5, ("language",))
    assert TrainTextConfig(model="m", samples="s", out="o", sample="60%", exclude="a,b").exclude == ("a", "b")


def test_what_does_not_fit_is_one_line(samples: Path, model: str, tmp_path: Path) -> None:
    def words(**options: Any) -> list[str]:
        given = {"model": model, "samples": samples, "out": tmp_path / "out", "length": 512, **options}
        return ["train-text", *(str(word) for name, value in given.items() for word in (f"--{name}", value))]

    assert "takes images; --model needs a language model" in refused(*words(model=CHECKPOINT))
    assert "no samples/, scores/ or selection/ here" in refused(*words(exclude=tmp_path))
    assert "takes a percentage such as 1%" in refused(*words(sample="2"))
    begun = tmp_path / "begun"
    copy_outputs(samples.parent, begun, "samples")
    record = json.loads((begun / "samples.stage.json").read_text())
    (begun / "samples.stage.json").write_text(json.dumps(record | {"complete": False}))
    assert "isn't finished" in refused(*words(exclude=begun))
    assert "no sample to train on" in refused(*words(exclude=samples), "--dry-run")
    assert "--tower-lr" in refused(*words(), "--tower-lr", "1e-5")
    assert not (tmp_path / "out").exists()
    printed = call(*words(sample="50%"), "--dry-run").stdout.splitlines()
    assert printed[0].split()[0] == "LlamaForCausalLM"
    assert next(line for line in printed if "parameters" in line).endswith("parameters are trained")
    assert "not drawn; steps of up to 2,048 samples: 1" in "".join(printed)


def test_another_run_is_not_gone_on_with(samples: Path, model: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": model, "samples": str(samples), "out": str(tmp_path)}
    identity = text_job.check(TrainTextConfig(**given)).identity
    for same in ({"workers": "2"}, {"micro_batch": 3}, {"exclude": ()}):
        assert text_job.check(TrainTextConfig(**given, **same)).identity == identity
    changes: list[dict[str, Any]] = [
        {"context": "conversation"}, {"sample": "50%"}, {"exclude": (str(samples.parent / "selection"),)},
        {"length": 20}, {"lr": 1e-3},
    ]  # fmt: skip
    for change in changes:
        assert text_job.check(TrainTextConfig(**given, **change)).identity != identity, change
    plan = text_job.check(TrainTextConfig(**given))
    assert replace(plan, out="").stage == "train-text"
