"""`make families`: the table of docs/models.md, measured on the tiny checkpoints of tests/model/families."""

from __future__ import annotations

import copy
import logging
import pkgutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.model import families
from tests.model.family import NO_BLIND, NOT_SCORED, SAMPLES, Family, apart, asked
from vig_ray.errors import StageError
from vig_ray.evaluation.generation import Sampling, Written
from vig_ray.evaluation.load import load_generator
from vig_ray.evaluation.torch_generator import TorchGenerator
from vig_ray.model.attention import can_pack
from vig_ray.model.head import applied_softcap
from vig_ray.scoring.engines.forwards import kind
from vig_ray.scoring.reference import blind, blur
from vig_ray.training.batch import Batcher, TrainingSample, plan_by_kind
from vig_ray.training.check import make_sure
from vig_ray.training.export import write_model
from vig_ray.training.parts import parts_of, whole_modules
from vig_ray.training.training_model import TRAINED, TrainingModel

_HEAD = (
    "| family | prompts | scored | clean, blurred | blind | answers | trained | packed | projector | export | asked |"
)
_MARGIN = 1e-3  # between two tokens that are as likely but for rounding


def scored(family: Family) -> tuple[str, str, bool]:
    """The largest differences: clean and blurred, blind; and whether all answers say what they should."""
    clean, hidden, said = [0.0], [0.0], True
    for sample, given in family.samples.items():
        prompt = family.prompt(sample, given)
        asked = [prompt, blur(prompt), blind(prompt)] if given.sizes else [prompt]
        found = family.engine.logprobs(asked)
        clean.append(apart(found[0], family.logprobs(family.inputs(given), prompt)))
        if given.sizes:
            clean.append(apart(found[1], family.logprobs(family.inputs(given, blur=True), prompt)))
        if given.sizes and family.name not in NO_BLIND:
            hidden.append(apart(found[2], family.logprobs(family.inputs(given), prompt, hidden=True)))
        for number, answer in enumerate(given.turns[1::2]):
            text = family.processor.tokenizer.decode(prompt.answer_ids[prompt.turns == number].tolist())
            said = said and text.strip().startswith(answer)
    return f"{np.max(clean):.0e}", "an error" if family.name in NO_BLIND else f"{np.max(hidden):.0e}", said


def trained(family: Family) -> tuple[str, str]:
    """The largest difference of training's log-probs from the model's own, and of packed ones from padded ones."""
    if not hasattr(family.model, "model"):
        return "no", ""
    prompts = {name: family.prompt(name, sample) for name, sample in family.samples.items()}
    expected = [-family.logprobs(family.inputs(SAMPLES[name]), prompt) for name, prompt in prompts.items()]
    ones = [np.ones(len(each), dtype=np.float32) for each in expected]
    together = make_sure(family.folder, family.formatter).whole_together
    found = {}
    for packed in {can_pack(family.model), False}:
        model = copy.deepcopy(family.model)
        training_model = TrainingModel(model, pack=packed, softcap=applied_softcap(model))
        samples = [TrainingSample(n, name, prompt, ones[n]) for n, (name, prompt) in enumerate(prompts.items())]
        batcher = Batcher(model, family.formatter.collate, device="cpu", dtype=torch.float32, packed=packed)
        found[packed] = [np.zeros(0)] * len(samples)
        for members in plan_by_kind(samples, max_tokens=100_000, packed=packed, whole_together=together):
            _, nll_N = training_model(batcher([samples[n] for n in members], [ones[n] for n in members]))
            ends = np.cumsum([len(expected[n]) for n in members])
            for n, part in zip(members, np.split(nll_N.detach().numpy(), ends[:-1]), strict=True):
                found[packed][n] = part
    away = max(apart(ours, theirs) for each in found.values() for ours, theirs in zip(each, expected, strict=True))
    if True not in found:
        return f"{away:.0e}", "n/a"
    return f"{away:.0e}", f"{max(map(apart, found[True], found[False])):.0e}"


def exported(family: Family, folder: Path) -> str:
    """The largest difference of a log-prob after writing the model and loading it again."""
    write_model(family.model.state_dict(), family.folder, "auto", str(folder), "float32", TRAINED)
    again = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    name = next(iter(family.samples))
    prompt, given = family.prompt(name, SAMPLES[name]), family.samples[name]
    before = family.logprobs(family.inputs(given), prompt)
    family.model, family.processor = again, processor
    return f"{apart(family.logprobs(family.inputs(given), prompt), before):.0e}"


def asked_in_batches(family: Family) -> str:
    """How the torch generator asks, all samples' questions at once, where its answers are transformers' own."""
    generator = load_generator("torch", model=family.folder, dtype="float32", device="cpu")
    assert isinstance(generator, TorchGenerator)
    prompts = [family.prompt(name, asked(sample)) for name, sample in family.samples.items()]
    found = generator.generate(prompts, [Sampling(max_new_tokens=8)] * len(prompts))
    unused = getattr(family.processor, "unused_input_names", ())
    for written, sample in zip(found, family.samples.values(), strict=True):
        assert isinstance(written, Written), written
        given = {name: value for name, value in family.inputs(asked(sample)).items() if name not in unused}
        inputs = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
        out = family.model.generate(
            **inputs, do_sample=False, max_new_tokens=8, eos_token_id=list(generator.stop_ids), pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        theirs = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        ours = [*written.token_ids.tolist(), *([theirs[-1]] if written.finished else [])]
        place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if place is not None:
            first, second = out.logits[place][0].topk(2).values.tolist()
            if first - second > _MARGIN:
                return "WRONG"
        elif len(ours) != len(theirs):
            return "WRONG"
    if not {kind(prompt) for prompt in prompts} <= generator.padded:
        return "one by one"
    return "behind shared images" if generator.shares and family.formatter.by_parts else "in batches"


def row(name: str, folder: Path) -> str:
    """A family's line."""
    try:
        family = Family(name, folder)
    except StageError as error:
        return f"| {name} | refused: {str(error).partition(': ')[2]} | | | | | | | | | |"
    parts = family.formatter.by_parts
    batched = ("by parts" if parts else "whole") not in family.engine.plainly
    clean, hidden, said = scored(family)
    ways = asked_in_batches(family)
    learned, padded = trained(family)
    projector = whole_modules(family.model, parts_of(family.model), "projector")
    names = ", ".join(sorted({path.rpartition(".")[2] for path in projector}))
    return (
        f"| {name} | {'by parts' if parts else 'whole'} | {'in batches' if batched else 'one by one'} | {clean} "
        f"| {hidden} | {'ok' if said else 'WRONG'} | {learned} | {padded} | {names} "
        f"| {exported(family, folder / 'exported')} | {ways} |"
    )


def main() -> None:
    """Print the table, a row a family, as they are done."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    names = [module.name for module in pkgutil.iter_modules(families.__path__) if module.name != "base"]
    print(_HEAD, "|---|---|---|---|---|---|---|---|---|---|---|", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in [*(name for name in names if name not in NOT_SCORED), *NOT_SCORED]:
            print(row(name, Path(folder, name)), flush=True)


if __name__ == "__main__":
    main()
