"""VAR: attention that sinks draw is handed on to the rest of the image.

Source: Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025, arXiv
2503.03321, with the numbers and steps of its released code, as forks of it have them. A sink is a token whose state, at
a layer's input and divided by its root mean square, exceeds tau in one of the language model's few sink dimensions. In
each layer from `start` on but the last, a query behind the image hands on in those heads that look at the image,

    share of the image >= least    and    share of that on the image's sinks <= rho,

namely so much of its attention on any sink that p of it is left; the image's other tokens get it in proportion to what
they have. Which dimensions draw attention is a property of the language model and must be said: 1415 and 2533 in
LLaMA-2 7B (and so in LLaVA-1.5 7B), 2100 and 4743 in LLaMA-2 13B.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from vig_ray.errors import StageError
from vig_ray.evaluation.decoding import Acting, Decoding, number
from vig_ray.evaluation.decoding.attention import Changing, attending, changed, check_attention
from vig_ray.evaluation.rows import Line, line_of
from vig_ray.model.prompt import Formatter, Prompt, PromptError

_RMS_EPS = 1e-6
_SHARE_EPS = 1e-6  # a token of the image, as the released code has it


def _dimensions(text: str) -> tuple[int, ...]:
    found = tuple(int(each) for each in text.split("+"))
    if any(each < 0 for each in found):
        raise ValueError
    return found


@dataclass(frozen=True)
class Var(Decoding):
    """`sinks`: the dimensions. `tau`: above which a token is a sink. `rho`: the most of an image's share that its sinks
    may have. `least`: the least share of the image. `p`: what sinks keep. `start`: the first layer, from 0."""

    name: ClassVar[str] = "var"
    acts: ClassVar[bool] = True

    sinks: tuple[int, ...] = field(
        default=(), metadata={"read": (_dimensions, "takes dimensions with + between them, as 1415+2533")}
    )
    tau: float = field(default=20.0, metadata=number(0))
    rho: float = field(default=0.5, metadata=number(0, 1))
    least: float = field(default=0.2, metadata=number(0, 1))
    p: float = field(default=0.6, metadata=number(0, 1))
    start: int = field(default=2, metadata=number(0, whole=True))

    def __post_init__(self) -> None:
        if not self.sinks:
            raise ValueError(
                "name the language model's sink dimensions, as sinks=1415+2533 for LLaMA-2 7B and LLaVA-1.5 7B"
            )

    def lines_of(self, prompt: Prompt, formatter: Formatter) -> tuple[Line, ...]:  # noqa: ARG002
        """Raises PromptError where nothing stands behind the image."""
        line = line_of(prompt)
        if not line.prefix:
            raise PromptError("Decoding", "var: nothing stands behind the image whose attention could be handed on")
        return (line,)

    @contextmanager
    def acting(self, model: Any) -> Iterator[Acting]:
        """Sinks found in all that is computed, attention handed on once the prefixes are."""
        layers = model.get_decoder().layers
        handing = _HandingOn(self, range(self.start, len(layers) - 1))
        with ExitStack() as stack:
            for number_, layer in enumerate(layers):
                hook = layer.register_forward_pre_hook(handing.seen(number_), with_kwargs=True)
                stack.callback(hook.remove)
            stack.enter_context(attending(model))
            stack.enter_context(changed(Changing(handing.change, last=None)))
            yield handing

    def check(self, model: Any) -> None:
        """Raises StageError where its layers attend in another way, or have no such dimensions."""
        check_attention(self.name, model)
        text = model.config.get_text_config()
        if max(self.sinks) >= text.hidden_size:
            raise StageError(f"--decoding {self.spec}: the model's states have {text.hidden_size} dimensions, from 0")
        if self.start >= text.num_hidden_layers - 1:
            raise StageError(
                f"--decoding {self.spec}: no layer from start to the last but one of {text.num_hidden_layers}"
            )


class _HandingOn(Acting):
    """Which tokens are sinks, layer by layer, and what is done about them. R rows, K tokens so far."""

    def __init__(self, method: Var, layers: range) -> None:
        self._method, self._layers = method, layers
        self._image: torch.Tensor | None = None
        self._sinks: dict[int, torch.Tensor] = {}

    def begins(self, image_RL: torch.Tensor, after_RL: torch.Tensor) -> None:  # noqa: ARG002
        """From now on."""
        self._image = image_RL

    def rows(self, rows_R: torch.Tensor) -> None:
        """These are left."""
        self._sinks = {layer: sinks[rows_R] for layer, sinks in self._sinks.items()}
        if self._image is not None:
            self._image = self._image[rows_R]

    def seen(self, layer: int) -> Any:
        """A hook that notes the sinks at a layer's input."""

        def note(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            if layer not in self._layers:
                return
            states = (arguments[0] if arguments else options["hidden_states"]).float()
            sizes = states.pow(2).mean(-1) + _RMS_EPS
            largest = states[..., list(self._method.sinks)].abs().max(-1).values * sizes.rsqrt()
            before = [self._sinks[layer]] if layer in self._sinks else []
            self._sinks[layer] = torch.cat([*before, largest > self._method.tau], dim=1)

        return note

    def change(self, layer: int, scores: torch.Tensor) -> torch.Tensor | None:
        """See `vig_ray.evaluation.decoding.attention.Change`."""
        if self._image is None or layer not in self._layers:
            return None
        method, keys = self._method, scores.shape[-1]
        probs = scores.softmax(-1).nan_to_num(0.0)  # padding may see nothing
        image = torch.nn.functional.pad(self._image, (0, keys - self._image.shape[-1]))[:, None, None]
        sinks = self._sinks[layer][:, None, None]
        own = image & sinks
        of_image = (probs * image).sum(-1, keepdim=True)
        of_own = (probs * own).sum(-1, keepdim=True)
        of_rest = (probs * (image & ~sinks)).sum(-1, keepdim=True)
        share = of_own / (of_image + _SHARE_EPS * image.sum(-1, keepdim=True))
        looks = (of_image >= method.least) & (share <= method.rho) & own.any(-1, keepdim=True) & (of_rest > 0)
        handed = (1 - method.p) * (probs * sinks).sum(-1, keepdim=True)
        kept = torch.where(sinks, method.p * probs, probs)
        given = torch.where(image & ~sinks, handed * probs / of_rest, 0.0)
        return torch.where(looks, kept + given, probs)
