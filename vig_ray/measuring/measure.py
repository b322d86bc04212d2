"""The stage's actor: rows of `samples/` to rows of `measures/`, with the aligned model, a CLIP, or both.

Samples are run one by one, unpadded, as their family's own forward takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from vig_ray.dataset.images import ImageError
from vig_ray.dataset.schema import Turn
from vig_ray.measuring.clip import Clip, Floats, clip_score, over_characters
from vig_ray.measuring.config import OF_MODEL
from vig_ray.measuring.schema import measures_schema
from vig_ray.model.image_attention import watched
from vig_ray.model.load import Prompts, load_formatter, load_model
from vig_ray.model.prompt import Formatter, Prompt, PromptError, PromptImage, truncate
from vig_ray.scoring.engines.forwards import Forwards
from vig_ray.scoring.engines.target_logprobs import TargetLogProbs
from vig_ray.scoring.prepare import shared_image
from vig_ray.storage import one_line


class ModelMeasures:
    """What the aligned model says of a sample. `collate`: the formatter's. `measures`: which of `OF_MODEL`."""

    def __init__(self, model: Any, collate: Any, measures: Sequence[str] = OF_MODEL) -> None:
        self._model, self._measures = model, measures
        self._head = TargetLogProbs(model)
        self._forwards = Forwards(model, collate, self._head)

    def __call__(self, prompt: Prompt) -> dict[str, Any]:
        """`attention`, float32 [T], the mean over layers and heads, and `el2n`, as asked for. Raises PromptError."""
        measured: dict[str, Any] = {}
        if "attention" in self._measures:
            try:
                with watched(self._model, prompt.answer_positions - 1, prompt.image_mask) as watch:
                    states_TD = self._forwards.states_plainly(prompt)
                measured["attention"] = watch.shares().mean(axis=0)
            except ValueError as error:
                raise error if isinstance(error, PromptError) else PromptError("Attention", one_line(error)) from error
        else:
            states_TD = self._forwards.states_plainly(prompt)
        if "el2n" in self._measures:
            targets = torch.from_numpy(prompt.answer_ids.astype(np.int64)).to(states_TD.device)
            measured["el2n"] = float(self._head.error_norms(states_TD, targets).double().mean())
        return measured


def clip_measures(
    clip: Clip, prompt: Prompt, answers: Sequence[str], images: Sequence[Floats], *, tokens: bool, score: bool
) -> dict[str, Any]:
    """What a CLIP says of a sample: `clip`, float32 [T], with `tokens`; `clip_score` and `clip_cut` with `score`.

    `answers`: the texts of the assistant's turns; `images`: the images' embeddings. A token's logit is with the image
    that it is nearest to; the score is of all answers in one text, its mean over the images.
    """
    measured: dict[str, Any] = {}
    if tokens:
        logits_T = np.full(len(prompt.turns), np.nan, dtype=np.float32)
        for turn in sorted(set(prompt.turns.tolist())):
            vectors_NP, chars_N = clip.tokens(answers[turn])
            of_token = (vectors_NP @ np.stack(images, axis=1)).max(axis=1) * clip.scale
            here = prompt.turns == turn
            logits_T[here] = over_characters(of_token, chars_N, prompt.answer_chars[here], len(answers[turn]))
        measured["clip"] = logits_T
    if score:
        text = clip.text(" ".join(answers))
        scores = [clip_score(image, text.embedding) for image in images]
        measured |= {"clip_score": float(np.mean(scores)), "clip_cut": text.cut}
    return measured


class Measurer:
    """A Ray Data callable: rows of `SAMPLES` to rows of `measures_schema`.

    `prompts`: of the scores; `measures`: their names. `device`, `dtype`: of the model. `threads`: CPU threads, None for
    all. `progress`: a `RowCounter`, or None.
    """

    def __init__(
        self,
        *,
        prompts: Prompts,
        clip_model: str,
        measures: Sequence[str],
        device: str,
        dtype: str,
        threads: int | None,
        max_image_pixels: int,
        progress: Any = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._formatter: Formatter = load_formatter(*prompts)
        self._measures, self._schema = tuple(measures), measures_schema(measures)
        self._of_model, self._clip = None, None
        if set(measures) & set(OF_MODEL):
            model = load_model(prompts.model, dtype=dtype, device=device)
            self._of_model = ModelMeasures(model, self._formatter.collate, self._measures)
        if set(measures) - set(OF_MODEL):
            self._clip = Clip(clip_model, device)
        self._max_image_pixels, self._progress = max_image_pixels, progress
        if progress is not None:
            progress.ready.remote(f"torch {torch.__version__} on {device}")

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Measure a block; samples that name the same image share its decoding and its embedding."""
        images: dict[str, PromptImage] = {}
        embeddings: dict[str, Floats] = {}
        rows = [self._row(row, images, embeddings) for row in samples.to_pylist()]
        if self._progress is not None:
            failed = sum(row["error"] is not None for row in rows)
            tokens = sum(row["measured_tokens"] or 0 for row in rows)
            self._progress.add.remote(len(rows), tokens=tokens, failed=failed, by_engine=True)
        return pa.Table.from_pylist(rows, schema=self._schema)

    def _row(
        self, row: Mapping[str, Any], images: dict[str, PromptImage], embeddings: dict[str, Floats]
    ) -> dict[str, Any]:
        out = dict.fromkeys(self._schema.names) | {"sample_key": row["sample_key"], "error": row["error"]}
        if row["error"] is not None or not row["images"]:
            return out
        try:
            measured = self._measured(row, images, embeddings)
        except (ImageError, PromptError) as error:
            return out | {"error": str(error)}
        except Exception as error:  # a processor that fails on one row must not end the job
            return out | {"error": f"{type(error).__name__}: {one_line(error)}"[:500]}
        return out | {name: value for name, value in measured.items() if name in out}

    def _measured(
        self, row: Mapping[str, Any], images: dict[str, PromptImage], embeddings: dict[str, Floats]
    ) -> dict[str, Any]:
        limit = self._max_image_pixels
        pictures = [shared_image(image, images, self._formatter, max_pixels=limit) for image in row["images"]]
        turns = [Turn(turn["role"], turn["text"]) for turn in row["conversation"]]
        prompt = truncate(self._formatter.prompt(turns, pictures), self._formatter.max_length)
        if not len(prompt.answer_positions):
            raise PromptError("NoAnswer", "no answer token")
        if not prompt.images:
            return {}
        measured: dict[str, Any] = {"measured_tokens": len(prompt.answer_ids), "answer_ids": prompt.answer_ids}
        if self._of_model is not None:
            measured |= self._of_model(prompt)
        if self._clip is not None:
            for image in prompt.images:
                if image.key not in embeddings:
                    embeddings[image.key] = self._clip.image(image.pixels)
            measured |= clip_measures(
                self._clip,
                prompt,
                [turn.text for turn in turns if turn.role == "assistant"],
                [embeddings[image.key] for image in prompt.images],
                tokens="clip" in self._measures,
                score="clip-score" in self._measures,
            )
        for name in ("attention", "el2n"):
            if name in measured and not np.isfinite(measured[name]).all():
                raise PromptError("NotFinite", f"{name} overflows; --dtype bfloat16 or float32 has the range")
        return measured
