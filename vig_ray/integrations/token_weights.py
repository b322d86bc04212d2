"""Token weights in a `transformers.Trainer`, and whatever is derived from it.

A Trainer divides by the labels that it counts in a whole step where the model says it can take that number; Qwen2.5-VL,
Gemma 3 and others say they can't, and get the mean of the means of their microbatches. Here the loss is
`vig_ray.training.objective`'s, whatever the model says: before a step's first forward pass, the totals of the global
batch, over all its microbatches and processes, make the coefficient c_t of each weight w_t; the loss is the sum of
c_t * -log q(a_t).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vig_ray.training.objective import Normalisation, Totals, coefficients

_WEIGHTS = "token_weights"
# The bits of float32 as int32: a Trainer casts the floats of a batch to the dtype of DeepSpeed, where small ones are 0.
_WEIGHT_BITS, _COEFFICIENT_BITS = "token_weight_bits", "token_coefficient_bits"


class TokenWeightsMixin:
    """Goes before a Trainer: `class MyTrainer(TokenWeightsMixin, Trainer)`. Its batches have `token_weights`, float32
    [B, L], as `ActiveTokensCollator(model, token_weights=True)` makes them.

    `normalisation`: "tokens", or "samples" for a mean over each sample's tokens first, as in `vig train`.

    Raises ValueError for arguments that would make another loss of it. Columns are never taken away from rows
    (`remove_unused_columns`): the weights would go with them, and nobody would notice.
    """

    def __init__(self, *args: Any, normalisation: Normalisation = "tokens", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._normalisation: Normalisation = normalisation
        trainer: Any = self
        _refuse(trainer)
        trainer.args.remove_unused_columns = False
        # So the Trainer takes the loss as it is: it would divide it by the number of microbatches.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The microbatches of a step, with coefficients in the place of weights. Every process calls it."""
        trainer: Any = super()
        batches, _ = trainer.get_batch_samples(epoch_iterator, num_batches, device)
        weights = [_rows(batch) for batch in batches]
        totals = Totals.of([row for rows in weights for row in rows])
        accelerator: Any = self.accelerator  # type: ignore[attr-defined]
        everyone = accelerator.gather(torch.tensor([totals], dtype=torch.int64, device=device))
        totals = Totals(*everyone.sum(dim=0).tolist())
        for batch, rows in zip(batches, weights, strict=True):
            coefficient_BL = _coefficients(rows, totals, self._normalisation, batch.pop(_WEIGHTS))
            batch[_COEFFICIENT_BITS] = coefficient_BL.view(torch.int32)
        return batches, torch.ones((), device=device)

    def _prepare_inputs(self, inputs: Any) -> Any:
        trainer: Any = super()
        if _WEIGHTS in inputs:  # in evaluation
            bits = inputs[_WEIGHTS].float().view(torch.int32)
            inputs = {name: value for name, value in inputs.items() if name != _WEIGHTS} | {_WEIGHT_BITS: bits}
        return trainer._prepare_inputs(inputs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Any:
        """This process's part of the loss of the global batch, times the number of processes, over which gradients are
        averaged. In evaluation: the loss of this batch by itself, as a Trainer has it."""
        given = dict(inputs)
        bits_BL = given.pop(_COEFFICIENT_BITS, None)
        processes: int = self.accelerator.num_processes  # type: ignore[attr-defined]
        if bits_BL is None:
            if _WEIGHT_BITS in given:
                given[_WEIGHTS] = given.pop(_WEIGHT_BITS).view(torch.float32)
            rows = _rows(given)
            coefficient_BL = _coefficients(rows, Totals.of(rows), self._normalisation, given.pop(_WEIGHTS))
        else:
            coefficient_BL = bits_BL.view(torch.float32) * processes
        loss, outputs = self.weighted_loss(model, given, coefficient_BL, return_outputs)
        return (loss, outputs) if return_outputs else loss

    def weighted_loss(
        self, model: Any, inputs: dict[str, Any], coefficient_BL: torch.Tensor, whole: bool
    ) -> tuple[torch.Tensor, Any]:
        """Sum of c_t * -log q(a_t), a float32 scalar, and the model's outputs, with logits of all positions if `whole`,
        else only where they are needed.

        Raises ValueError where the model's logits aren't one for each token.
        """
        labels_BK, coefficient_BK = inputs.pop("labels")[:, 1:], coefficient_BL[:, 1:]
        active_BK = coefficient_BK != 0
        kept_K = torch.arange(active_BK.shape[1], device=active_BK.device)
        if not whole and "logits_to_keep" in _arguments(self, model):
            kept_K = active_BK.any(dim=0).nonzero().squeeze(1)
            outputs = model(**inputs, logits_to_keep=kept_K)
            logits_BKV = outputs.logits
        else:
            outputs = model(**inputs)
            logits_BKV = outputs.logits[:, :-1]
        if logits_BKV.shape[:2] != (len(labels_BK), len(kept_K)):
            raise ValueError(f"{type(model).__name__}: its logits aren't one for each token of the batch")
        at = active_BK[:, kept_K]
        target_N = labels_BK[:, kept_K][at]
        nll_N = torch.nn.functional.cross_entropy(logits_BKV[at].float(), target_N, reduction="none")
        return (coefficient_BK[:, kept_K][at] * nll_N).sum(), outputs


def _arguments(trainer: Any, model: Any) -> frozenset[str]:
    """The names that the forward of the model inside its wrappers takes."""
    inner = trainer.accelerator.unwrap_model(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return frozenset(inspect.signature(inner.forward).parameters)


def _rows(batch: Any) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """The weights of each row of a batch, float32 [L]. Raises ValueError where it has none, or some that are no weights
    of tokens that the loss is of."""
    if _WEIGHTS not in batch:
        raise ValueError(
            "no token_weights in a batch; give data_collator=ActiveTokensCollator(model, token_weights=True)"
        )
    weights_BL = batch[_WEIGHTS].float()
    trained_BL = batch["labels"] != -100
    trained_BL[:, 0] = False
    if not ((weights_BL >= 0) & (trained_BL.to(weights_BL.device) | (weights_BL == 0))).all():
        raise ValueError("token_weights: negative, or not 0 where nothing is trained (label -100, first token)")
    return list(weights_BL.cpu().numpy())


def _coefficients(
    rows: list[np.ndarray[Any, np.dtype[np.float32]]], totals: Totals, normalisation: Normalisation, like: torch.Tensor
) -> torch.Tensor:
    """c_t of the tokens of a microbatch, float32 [B, L], on the device of `like`."""
    made = np.stack([coefficients(row, totals, normalisation) for row in rows])
    return torch.from_numpy(made).to(like.device)


def _refuse(trainer: Any) -> None:
    """Raise ValueError where a Trainer would do something else with the loss, or cut a batch into parts of samples."""
    args, name = trainer.args, type(trainer).__name__
    if args.label_smoothing_factor:
        raise ValueError(f"{name}: label_smoothing_factor smooths the labels of another loss; leave it 0")
    if trainer.compute_loss_func is not None:
        raise ValueError(f"{name}: compute_loss_func would take the place of the weighted loss; leave it out")
    if args.n_gpu > 1:
        raise ValueError(f"{name}: several GPUs in one process (DataParallel); start it with torchrun or accelerate")
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if any(getattr(parallel, f"{kind}_size", 1) not in (None, 1) for kind in ("cp", "sp", "tp")):
        raise ValueError(f"{name}: token weights go with data parallelism (DDP, FSDP, ZeRO) and no other kind")
    if getattr(trainer.model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name}: {type(trainer.model).__name__} has an encoder; labels aren't the next tokens of it")
