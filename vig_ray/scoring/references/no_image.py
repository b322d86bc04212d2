"""`no-image`: the text alone, moved up to where the image was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vig_ray.model.prompt import Prompt, PromptError


def no_image(prompt: Prompt) -> Prompt:
    """The prompt without its images and their positions: a plain text prompt.

    What goes is every position of image features, and what the processor itself put between those of one image (row
    separators), as far as `image_spans` tells. The template's text stays as it is, with what it puts around an image:
    LLaVA's newline, Qwen's <|vision_start|> and <|vision_end|> with nothing between them. Where the processor makes
    samples as a whole, spans aren't known, and the separators stay, too.

    VisNec's released script amounts to this, but for one masked position that it leaves; the paper (and `blind`) keeps
    the text where it was. An answer token that follows an image directly is predicted by what stands before the image.
    Raises PromptError where nothing does, or an answer lies between an image's features.
    """
    keep = ~prompt.image_mask
    for first, past in prompt.image_spans.tolist():
        keep[first:past] = False
    if not keep[prompt.answer_positions].all():
        raise PromptError("NoImage", "an answer token lies inside an image, which is left out")
    positions = (np.cumsum(keep) - 1)[prompt.answer_positions].astype(np.int32)
    if len(positions) and positions[0] == 0:
        raise PromptError("NoImage", "nothing but an image stands before an answer, and without it nothing predicts it")
    return replace(
        prompt,
        token_ids=prompt.token_ids[keep],
        answer_positions=positions,
        image_mask=prompt.image_mask[keep],
        image_spans=prompt.image_spans[:0],
        images=(),
        whole=None,
    )
