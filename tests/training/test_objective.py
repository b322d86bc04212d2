"""The loss against its definition, and what must have no part in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scoring.prompts import LONG, ask, picture
from tests.training.plain import plain_training
from tests.training.runs import alone, setup_of, weights_of
from vig_ray.demo import CHECKPOINT
from vig_ray.model.attention import can_pack
from vig_ray.model.load import load_formatter, load_model
from vig_ray.training.batch import Batcher, TrainingSample, plan_microbatches
from vig_ray.training.next_token import weighted_cross_entropy
from vig_ray.training.objective import Totals, coefficients
from vig_ray.training.training_model import TrainingModel

WEIGHTS = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, 0.25, 3.5]), min_size=1, max_size=9).map(lambda w: np.array(w, np.float32)),
    min_size=1,
    max_size=6,
)


@given(WEIGHTS)
def test_token_mean_gives_every_active_token_its_weight_over_their_number(weights: list[Any]) -> None:
    totals = Totals.of(weights)
    active = sum(w != 0 for each in weights for w in each.tolist())
    assert totals.active_tokens == active
    for each in weights:
        expected = [w / active if active else 0.0 for w in each.tolist()]
        assert coefficients(each, totals, "tokens").tolist() == pytest.approx(expected, rel=1e-6)


@given(WEIGHTS)
def test_sample_mean_is_a_mean_of_means(weights: list[Any]) -> None:
    totals = Totals.of(weights)
    nll = [np.arange(1, len(each) + 1, dtype=float) for each in weights]
    means = []
    for each, losses in zip(weights, nll, strict=True):
        kept = [(w, loss) for w, loss in zip(each.tolist(), losses.tolist(), strict=True) if w != 0]
        if kept:
            means.append(sum(w * loss for w, loss in kept) / len(kept))
    ours = sum(float(coefficients(w, totals, "samples") @ n) for w, n in zip(weights, nll, strict=True))
    assert ours == pytest.approx(sum(means) / len(means) if means else 0.0, rel=1e-5)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.integers(1, 5), st.booleans())
def test_passes_hold_every_sample_once_within_their_budget(
    lengths: list[int], most: int, each: int, packed: bool
) -> None:
    microbatches = plan_microbatches(lengths, max_tokens=most, max_samples=each, packed=packed)
    assert sorted(index for members in microbatches for index in members) == list(range(len(lengths)))
    for members in microbatches:
        own = [lengths[index] for index in members]
        size = sum(own) if packed else len(own) * max(own)
        assert size <= most or len(members) == 1
        assert len(members) <= each


@settings(max_examples=20)
@given(st.integers(0, 40), st.integers(1, 13))
def test_chunks_change_neither_the_loss_nor_its_gradient(rows: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    head = torch.randn(11, 6, generator=generator, dtype=torch.float64).requires_grad_()
    hidden = torch.randn(rows, 6, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 11, (rows,), generator=generator)
    share = torch.rand(rows, generator=generator, dtype=torch.float64)
    expected = sum((-share[i] * (head @ hidden[i]).log_softmax(0)[target[i]] for i in range(rows)), torch.zeros(()))
    grads = torch.autograd.grad(expected + 0 * head.sum() + 0 * hidden.sum(), (head, hidden))
    loss, nll = weighted_cross_entropy(
        hidden, lambda h: h @ head.T, target, share, vocabulary=11, logits_at_once=11 * chunk
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert len(nll) == rows
    for ours, theirs in zip(torch.autograd.grad(loss, (head, hidden)), grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def trainable(loaded: Any) -> list[TrainingSample]:
    assert all(isinstance(each, TrainingSample) for each in loaded)
    return list(loaded)


def some_samples(checkpoint: str) -> tuple[list[TrainingSample], Any]:
    """With an image, with another, without one; weights of 0, 1 and between."""
    formatter = load_formatter(checkpoint)
    prompts = [
        ask(formatter, LONG, picture(1, formatter)),
        ask(formatter, "Red.", picture(2, formatter)),
        ask(formatter, LONG, None),
    ]
    rng = np.random.default_rng(0)
    weights = [rng.choice([0, 1, 0.5], len(prompt.answer_positions)).astype(np.float32) for prompt in prompts]
    return [
        TrainingSample(i, str(i), p, w) for i, (p, w) in enumerate(zip(prompts, weights, strict=True))
    ], formatter.collate


def gradients(samples: list[TrainingSample], collate: Any, checkpoint: str, *, packed: bool) -> dict[str, torch.Tensor]:
    model = load_model(checkpoint, dtype="float32", device="cpu")
    training_model = TrainingModel(model, pack=can_pack(model))
    batcher = Batcher(model, collate, device="cpu", dtype=torch.float32, packed=packed)
    totals = Totals.of([sample.weights_T for sample in samples])
    loss, _ = training_model(batcher(samples, [coefficients(sample.weights_T, totals, "tokens") for sample in samples]))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss.detach()}


def test_a_token_of_weight_0_has_no_part_whatever_its_label(chosen: Path, demo_formatter: Any) -> None:
    """Gradients stay the same to the last bit when such a token is another one."""
    samples = trainable(setup_of(chosen).source().__getitems__(range(12)))
    before = gradients(samples, demo_formatter.collate, CHECKPOINT, packed=True)
    changed = 0
    for sample in samples:
        last = sample.prompt.answer_positions[-1]
        # As an input it is seen by no other token, so that only its label is left.
        if sample.weights_T[-1] == 0 and last == len(sample.prompt.token_ids) - 1:
            sample.prompt.token_ids[last] = 77
            changed += 1
    assert changed > 2
    after = gradients(samples, demo_formatter.collate, CHECKPOINT, packed=True)
    assert before.keys() == after.keys()
    assert all(torch.equal(gradient, after[name]) for name, gradient in before.items())


def test_prior_weights_and_sample_means_train_as_written_out_plainly(chosen: Path, tmp_path: Path) -> None:
    from vig_ray.selection import job
    from vig_ray.selection.config import SelectConfig

    for link in ("samples", "scores"):
        (tmp_path / link).symlink_to(chosen / link)
    job.run(SelectConfig(scores=str(chosen), out=str(tmp_path), strategy="prior"))
    for by_sample in (False, True):
        losses, model = plain_training(
            CHECKPOINT, tmp_path / "samples", tmp_path / "selection", steps=4, batch=6, lr=1e-3,
            by_sample=by_sample,
        )  # fmt: skip
        options = {"normalisation": "samples" if by_sample else "tokens", "max_steps": 4, "global_batch": 6}
        run = alone(setup_of(tmp_path, **options), tmp_path / f"run{by_sample}")
        assert [line["loss"] for line in run.log] == pytest.approx(losses, abs=1e-4)
        expected = model.state_dict()
        assert max((tensor - expected[name]).abs().max() for name, tensor in weights_of(run).items()) < 1e-4


def test_other_models_pack_and_pad_to_the_same_gradients(qwen_checkpoint: str, gemma_checkpoint: str) -> None:
    """Qwen2.5-VL (positions in three dimensions) packed against one sample a pass; Gemma 3, which can't be packed."""
    for checkpoint, packs in ((qwen_checkpoint, True), (gemma_checkpoint, False)):
        samples, collate = some_samples(checkpoint)
        model = load_model(checkpoint, dtype="float32", device="cpu")
        assert can_pack(model) == packs
        together = gradients(samples, collate, checkpoint, packed=packs)
        padded = gradients(samples, collate, checkpoint, packed=False)
        single: dict[str, torch.Tensor] = {}
        totals = Totals.of([sample.weights_T for sample in samples])
        training_model = TrainingModel(model, pack=packs)
        for sample in samples:
            one = Batcher(model, collate, device="cpu", dtype=torch.float32, packed=False)
            loss, _ = training_model(one([sample], [coefficients(sample.weights_T, totals, "tokens")]))
            loss.backward()
            single["loss"] = single.get("loss", torch.zeros(())) + loss.detach()
        single |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for name, expected in single.items():
            scale = max(1e-3, float(expected.abs().max()))
            assert (together[name] - expected).abs().max() < 1e-3 * scale, name
            assert (padded[name] - expected).abs().max() < 1e-3 * scale, name
