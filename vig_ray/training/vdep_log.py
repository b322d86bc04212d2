"""What is told of each step with `--objective vdep`, in log.jsonl below `vdep` and to trackers as vdep/..."""

from __future__ import annotations

from collections.abc import Sequence

from vig_ray.training.objective import Totals

LossParts = dict[str, float | None]


def loss_parts(
    losses: Sequence[float], variance: float | None, totals: Sequence[Totals], norms: Sequence[float] | None
) -> LossParts | None:
    """The parts of a step's loss; None where it has but one.

    `text_loss` is L_t, a mean over the active tokens of the samples in text mode, and `image_loss` L_i, a mean over the
    image positions of those in image mode, without alpha. `embedding_variance`: of the embeddings at these positions,
    over the positions, mean over the width; where targets are live, it shows a collapse. `norms`: of the gradients of
    L_t and of alpha L_i, where they were measured.
    """
    if len(losses) == 1:
        return None
    (text_loss, image_loss), (text, image) = losses, totals
    step: LossParts = {
        "text_loss": text_loss,
        "image_loss": image_loss,
        "embedding_variance": variance,
        "text_samples": text.active_samples,
        "image_samples": image.active_samples,
        "image_positions": image.active_tokens,
    }
    if norms is not None:
        step |= {"text_grad_norm": norms[0], "image_grad_norm": norms[1]}
    return step


def figures(step: LossParts | None) -> dict[str, float]:
    """The same for trackers."""
    return {f"vdep/{name}": value for name, value in (step or {}).items() if value is not None}
