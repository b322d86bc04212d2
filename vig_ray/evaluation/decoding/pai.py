"""PAI: more attention to the image, and what the image adds to the text.

Source: Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs",
ECCV 2024, arXiv 2407.21771, and its released code. In each layer from `start` on, before `end`, the last query's scores
on the keys of image tokens are raised before the softmax,

    score := score + alpha |score|,

while the question's last token is read and each token is written. The next token is chosen by

    gamma (log p(y | image, text) - log p(y | text)) + log p(y | text)

among those whose probability with the image is at least beta times the likeliest one's (beta is 0.1 there). The text is
the prompt without its images, the rest moved up; its attention stays as it is. With gamma 1 there is no contrast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from vig_ray.errors import StageError
from vig_ray.evaluation.decoding import Acting, Decoding, number
from vig_ray.evaluation.decoding.attention import Changing, attending, changed, check_attention
from vig_ray.evaluation.decoding.vcd import plausible
from vig_ray.evaluation.rows import Line, line_of
from vig_ray.model.prompt import Formatter, Prompt, PromptError
from vig_ray.scoring.references.no_image import no_image


@dataclass(frozen=True)
class Pai(Decoding):
    """`alpha`: by how much of their size scores are raised. `gamma`: of the contrast, 1 for none. `beta`: the least
    share of the likeliest token's probability. `start`, `end`: layers, from 0; `end` 0 stands for all."""

    name: ClassVar[str] = "pai"
    acts: ClassVar[bool] = True

    alpha: float = field(default=0.2, metadata=number(0))
    gamma: float = field(default=1.1, metadata=number(1))
    beta: float = field(default=0.1, metadata=number(0, 1))
    start: int = field(default=2, metadata=number(0, whole=True))
    end: int = field(default=0, metadata=number(0, whole=True))

    @property
    def lines(self) -> int:
        """With the image, and the text alone where there is a contrast."""
        return 1 if self.gamma == 1 else 2

    def lines_of(self, prompt: Prompt, formatter: Formatter) -> tuple[Line, ...]:  # noqa: ARG002
        """Raises PromptError where nothing stands before the image, or nothing behind it."""
        line = line_of(prompt)
        if not line.prefix:
            raise PromptError("Decoding", "pai: nothing stands behind the image whose attention could be raised")
        if self.lines == 1:
            return (line,)
        before = int(prompt.image_spans[0, 0])
        if not before:
            raise PromptError("Decoding", "pai: nothing stands before the image, so there is no text to contrast with")
        return line, Line(no_image(prompt), before)

    def combine(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """See the module."""
        if self.lines == 1:
            return logits[0]
        image_NV, text_NV = (each.log_softmax(-1) for each in logits)
        return plausible(image_NV, self.gamma * (image_NV - text_NV) + text_NV, self.beta)

    @contextmanager
    def acting(self, model: Any) -> Iterator[Acting]:
        """Attention raised, once the prefixes are computed."""
        raised = _Raised(self)
        with attending(model), changed(Changing(raised.change, last=1)):
            yield raised

    def check(self, model: Any) -> None:
        """Raises StageError where its layers attend in another way, or are fewer."""
        check_attention(self.name, model)
        layers = model.config.get_text_config().num_hidden_layers
        if self.start >= layers or self.end > layers or (self.end and self.end <= self.start):
            raise StageError(f"--decoding {self.spec}: no layer from start to end; the model has {layers}")


class _Raised(Acting):
    """The scores of the last query on image tokens."""

    def __init__(self, method: Pai) -> None:
        self._method = method
        self._image: torch.Tensor | None = None

    def begins(self, image_RL: torch.Tensor, after_RL: torch.Tensor) -> None:  # noqa: ARG002
        """From now on."""
        self._image = image_RL

    def rows(self, rows_R: torch.Tensor) -> None:
        """These are left."""
        if self._image is not None:
            self._image = self._image[rows_R]

    def change(self, layer: int, scores: torch.Tensor) -> torch.Tensor | None:
        """See `vig_ray.evaluation.decoding.attention.Change`."""
        method = self._method
        if self._image is None or layer < method.start or (method.end and layer >= method.end):
            return None
        image = torch.nn.functional.pad(self._image, (0, scores.shape[-1] - self._image.shape[-1]))[:, None, None]
        return torch.where(image & scores.isfinite(), scores + method.alpha * scores.abs(), scores).softmax(-1)
