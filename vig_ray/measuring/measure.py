"""The stage's actor: rows of `samples/` to rows of `measures/`, with the aligned model, a CLIP, or both.

A CLIP takes the images and the texts of a block together, and for EL2N alone so does the torch engine. Where attention
is measured, samples are run one by one, unpadded, as their family's own forward takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from vig_ray.dataset.images import ImageError
from vig_ray.dataset.schema import Turn
from vig_ray.measuring.clip import Clip, Floats, clip_score
from vig_ray.measuring.config import OF_MODEL
from vig_ray.measuring.schema import measures_schema
from vig_ray.model.by_characters import means
from vig_ray.model.image_attention import watched
from vig_ray.model.load import Prompts, load_formatter, load_model
from vig_ray.model.prompt import Formatter, Prompt, PromptError, truncate
from vig_ray.model.shared_images import SharedImages
from vig_ray.scoring.engines import EngineDiedError
from vig_ray.scoring.engines.forwards import Forwards
from vig_ray.scoring.engines.load import load_engine
from vig_ray.scoring.engines.target_logprobs import ErrorNorms, TargetLogProbs
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.storage import one_line


class ModelMeasures:
    """What the aligned model says of a sample by its own forward. `collate`: the formatter's. `measures`: which of
    `OF_MODEL`."""

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


class El2n:
    """EL2N of many samples at once, by the torch engine as it scores them."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        engine.ask(ErrorNorms(engine.model))

    def __call__(self, prompts: Sequence[Prompt]) -> list[dict[str, float] | PromptError]:
        """`el2n` of each prompt, or why there is none."""
        return [
            norms_T if isinstance(norms_T, PromptError) else {"el2n": float(np.mean(norms_T, dtype=np.float64))}
            for norms_T in self._engine.logprobs(prompts)
        ]


class Answered(NamedTuple):
    """A sample's prompt, the texts of the assistant's turns, and the embeddings of its images."""

    prompt: Prompt
    answers: Sequence[str]
    images: Sequence[Floats]


def clip_measures(clip: Clip, samples: Sequence[Answered], *, tokens: bool, score: bool) -> list[dict[str, Any]]:
    """What a CLIP says of samples: `clip`, float32 [T], with `tokens`; `clip_score` and `clip_cut` with `score`.

    A token's logit is with the image that it is nearest to; the score is of all answers in one text, its mean over the
    images.
    """
    measured: list[dict[str, Any]] = [{} for _ in samples]
    if tokens:
        asked = [
            (number, turn) for number, each in enumerate(samples) for turn in np.unique(each.prompt.turns).tolist()
        ]
        for number, each in enumerate(samples):
            measured[number]["clip"] = np.full(len(each.prompt.turns), np.nan, dtype=np.float32)
        of_turns = clip.tokens([samples[number].answers[turn] for number, turn in asked])
        for (number, turn), (vectors_NP, chars_N) in zip(asked, of_turns, strict=True):
            prompt, pictures = samples[number].prompt, samples[number].images
            of_token = (vectors_NP @ np.stack(pictures, axis=1)).max(axis=1) * clip.scale
            here = prompt.turns == turn
            measured[number]["clip"][here] = means(of_token, chars_N, prompt.answer_chars[here]).values
    if score:
        texts = clip.texts([" ".join(each.answers) for each in samples])
        for of_sample, each, text in zip(measured, samples, texts, strict=True):
            scores = [clip_score(image, text.embedding) for image in each.images]
            of_sample |= {"clip_score": float(np.mean(scores)), "clip_cut": text.cut}
    return measured


def tried(run: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> list[Any]:
    """What `run` gives of items together; where it fails, by halves, and of one that fails by itself the exception.

    Raises EngineDiedError.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except EngineDiedError:
        raise
    except Exception as error:  # whatever one sample leads to must not end the job
        half = len(items) // 2
        return [error] if len(items) == 1 else [*tried(run, items[:half]), *tried(run, items[half:])]


@dataclass
class _Sample:
    """A row on its way: what was measured of it, or what went wrong."""

    key: str
    error: str | None
    prompt: Prompt | None = None
    answers: Sequence[str] = ()
    measured: dict[str, Any] = field(default_factory=dict)

    def take(self, found: Any) -> None:
        """What was measured, or an exception."""
        if not isinstance(found, Exception):
            self.measured |= found
            bad = [name for name in ("attention", "el2n") if name in found and not np.isfinite(found[name]).all()]
            if not bad:
                return
            found = PromptError("NotFinite", f"{bad[0]} overflows; --dtype bfloat16 or float32 has the range")
        told = isinstance(found, ImageError | PromptError)
        self.error = str(found) if told else f"{type(found).__name__}: {one_line(found)}"[:500]


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
        self._of_model: Callable[[Sequence[Prompt]], Sequence[Any]] | None = None
        self._clip: Clip | None = None
        if set(measures) & set(OF_MODEL) == {"el2n"}:
            engine = load_engine("torch", **prompts._asdict(), device=device, dtype=dtype, threads=threads)
            assert isinstance(engine, TorchEngine)
            self._of_model = El2n(engine)
        elif set(measures) & set(OF_MODEL):
            model = load_model(prompts.model, dtype=dtype, device=device)
            one = ModelMeasures(model, self._formatter.collate, self._measures)
            self._of_model = lambda prompts: [one(prompt) for prompt in prompts]
        if set(measures) - set(OF_MODEL):
            self._clip = Clip(clip_model, device)
        self._max_image_pixels, self._progress = max_image_pixels, progress
        if progress is not None:
            progress.ready.remote(f"torch {torch.__version__} on {device}")

    def __call__(self, table: pa.Table) -> pa.Table:
        """Measure a block; samples that name the same image share its decoding and its embedding."""
        images = SharedImages(self._formatter.preprocess, self._max_image_pixels)
        samples = [self._prepared(row, images) for row in table.to_pylist()]
        if self._of_model is not None:
            self._take(samples, self._of_model, lambda sample: sample.prompt)
        if self._clip is not None:
            self._take_of_clip(self._clip, samples)
        rows = [self._row(sample) for sample in samples]
        if self._progress is not None:
            failed = sum(row["error"] is not None for row in rows)
            tokens = sum(row["measured_tokens"] or 0 for row in rows)
            self._progress.add.remote(len(rows), tokens=tokens, failed=failed, by_engine=True)
        return pa.Table.from_pylist(rows, schema=self._schema)

    def _row(self, sample: _Sample) -> dict[str, Any]:
        out = dict.fromkeys(self._schema.names) | {"sample_key": sample.key, "error": sample.error}
        if sample.prompt is None or sample.error is not None:
            return out
        out |= {"measured_tokens": len(sample.prompt.answer_ids), "answer_ids": sample.prompt.answer_ids}
        return out | {name: value for name, value in sample.measured.items() if name in out}

    def _prepared(self, row: Mapping[str, Any], images: SharedImages) -> _Sample:
        """A row with its prompt, where there is something to measure."""
        sample = _Sample(row["sample_key"], row["error"])
        if row["error"] is not None or not row["images"]:
            return sample
        try:
            turns = [Turn(turn["role"], turn["text"]) for turn in row["conversation"]]
            prompt = truncate(self._formatter.prompt(turns, images.of(row)), self._formatter.max_length)
            if not len(prompt.answer_positions):
                raise PromptError("NoAnswer", "no answer token")
            for image in prompt.images:  # now, so that a broken one is this row's error
                _ = self._of_model and image.inputs
                _ = self._clip and image.pixels
        except Exception as error:  # a processor that fails on one row must not end the job
            sample.take(error)
            return sample
        if prompt.images:
            sample.prompt, sample.answers = prompt, [turn.text for turn in turns if turn.role == "assistant"]
        return sample

    def _take(
        self,
        samples: Sequence[_Sample],
        run: Callable[[Sequence[Any]], Sequence[Any]],
        given: Callable[[_Sample], Any],
    ) -> None:
        """Let samples that can be measured take what `run` makes of what is `given` of them."""
        ready = [sample for sample in samples if sample.prompt is not None and sample.error is None]
        for sample, found in zip(ready, tried(run, [given(sample) for sample in ready]), strict=True):
            sample.take(found)

    def _take_of_clip(self, clip: Clip, samples: Sequence[_Sample]) -> None:
        ready = [sample for sample in samples if sample.prompt is not None and sample.error is None]
        images = {image.key: image for sample in ready if sample.prompt for image in sample.prompt.images}
        found = tried(lambda pixels: list(clip.images(pixels)), [image.pixels for image in images.values()])
        embeddings = dict(zip(images, found, strict=True))
        for sample in ready:
            assert sample.prompt is not None
            failed = [
                embeddings[image.key] for image in sample.prompt.images if isinstance(embeddings[image.key], Exception)
            ]
            if failed:
                sample.take(failed[0])
        tokens, score = "clip" in self._measures, "clip-score" in self._measures

        def answered(sample: _Sample) -> Answered:
            assert sample.prompt is not None
            return Answered(sample.prompt, sample.answers, [embeddings[image.key] for image in sample.prompt.images])

        self._take(samples, partial(clip_measures, clip, tokens=tokens, score=score), answered)
