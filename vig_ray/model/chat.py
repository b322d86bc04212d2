"""Prompts for any `AutoModelForImageTextToText`, from its own chat template and processor.

The chat template renders the conversation; the trained spans are each assistant answer and the end-of-turn token
that the template puts after it. Answers are found by rendering once more with marks in their place, so nothing is
guessed from the wording of the answer.

There are two ways from there to the prompt. The processor's own takes every sample through it as a whole, and is right
by definition. The other one puts the prompt together from parts, so that samples share an image's arrays; it is taken
where `probe.py` finds it to give what the processor gives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vig_ray.compat.transformers import image_options, process_image
from vig_ray.dataset.schema import Turn
from vig_ray.model.arrays import tensors
from vig_ray.model.end_of_turn import EndOfTurn
from vig_ray.model.messages import (
    answers_of,
    as_messages,
    check_marks,
    check_question,
    check_sides,
    earlier_answers,
    placed,
)
from vig_ray.model.processor import Noted, NotingProcessor, as_array
from vig_ray.model.prompt import (
    ImageArrays,
    ImageInputs,
    Pixels,
    Prompt,
    PromptError,
    PromptImage,
    WholeInputs,
    answer_token_turns,
)
from vig_ray.storage import one_line

_MARK = "\ue0f0{}\ue0f1"  # private-use characters: no chat template writes them
_ANY_MARK = re.compile("\ue0f0(\\d+)\ue0f1")


class ChatFormatter:
    """Prompts and images by a transformers `processor` (tokenizer, image processor and chat template).

    `stops`: the tokens at which the model stops to speak. `end_of_turn`: what is trained after each answer where the
    template has it, None for what it puts there up to the first of the `stops`, or, where it has none of them, up to
    where the next turn begins.

    `by_parts`: put prompts together from parts, instead of taking each sample through the processor as a whole.
    `told`: what a person should know of it.
    """

    def __init__(
        self,
        processor: Any,
        *,
        image_token_id: int,
        max_length: int,
        stops: Sequence[str] = (),
        end_of_turn: str | None = None,
    ) -> None:
        self.by_parts = True
        self.told: list[str] = []
        self.processor = processor
        self._noting = NotingProcessor(processor)
        self.tokenizer = processor.tokenizer
        self.image_token_id = image_token_id
        self.max_length = max_length
        self.image_token = str(getattr(processor, "image_token", self.tokenizer.convert_ids_to_tokens(image_token_id)))
        self._image_options = image_options(processor)
        # Some of what an image processor gives is for the processor itself (Gemma 3's num_crops), none of the model's.
        self.unused_names = set(getattr(processor, "unused_input_names", ()))
        self._model_inputs = set(processor.image_processor.model_input_names) - self.unused_names
        if not (getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)):
            raise PromptError("Template", "the checkpoint has no chat template; add a chat_template.jinja to it")
        self.end_of_turn = EndOfTurn(self._after_answers(), self.tokenizer, stops=stops, asked=end_of_turn)
        self.stop_ids = self.end_of_turn.token_ids()

    def _after_answers(self) -> list[str]:
        """What the template writes after an answer up to the next question's text, and after the last one; only the
        latter where it takes no second question."""
        turns = [Turn("user", "\ue0f2"), Turn("assistant", ""), Turn("user", "\ue0f3"), Turn("assistant", "")]
        for answers in (2, 1):
            try:
                text = self._apply(turns[: 2 * answers], [_MARK.format(number) for number in range(answers)])
            except PromptError:
                continue
            pieces = _ANY_MARK.split(text)
            if len(pieces) == 2 * answers + 1:
                return [piece.partition("\ue0f3")[0] for piece in pieces[2::2]]
        return []

    def given_ids(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> npt.NDArray[np.int64]:
        """The token ids that the processor's own call gives, of a question where no answer is last, int64 [L]."""
        if conversation[-1].role == "user":
            answers, options = earlier_answers(conversation), {"add_generation_prompt": True}
        else:
            answers, options = answers_of(conversation), {}
        messages = as_messages(conversation, answers, [Image.fromarray(image.pixels) for image in images])
        out = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        return np.asarray(out["input_ids"]).astype(np.int64).reshape(-1)

    def render(self, conversation: Sequence[Turn]) -> tuple[str, list[tuple[int, int, int]]]:
        """The template's text, one image token an image, and its trained spans (start, end, assistant turn).

        Raises PromptError where the template refuses the conversation or rewrites an answer.
        """
        answers = answers_of(conversation)
        marked = self._apply(conversation, [_MARK.format(i) for i in range(len(answers))])
        rendered = self._apply(conversation, answers)
        return rendered, self._spans(marked, rendered, answers)

    def _spans(self, marked: str, rendered: str, answers: Sequence[str]) -> list[tuple[int, int, int]]:
        """Where the answers lie in a rendered text, by the same text with marks in their place."""
        pieces = _ANY_MARK.split(marked)
        if pieces[1::2] != [str(i) for i in range(len(answers))]:
            raise PromptError("Template", "the chat template drops or reorders assistant turns")
        for texts in (answers, [answer.strip() for answer in answers]):  # some templates trim every turn
            text, spans = pieces[0], []
            for turn, (answer, after) in enumerate(zip(texts, pieces[2::2], strict=True)):
                start = len(text)
                text += answer
                spans.append((start, len(text) + self.end_of_turn.length(after), turn))
                text += after
            if text == rendered:
                return spans
        raise PromptError(
            "Template", "the chat template rewrites assistant turns, so answer tokens can't be told apart"
        )

    def _apply(self, conversation: Sequence[Turn], answers: Sequence[str], **options: Any) -> str:
        try:
            text = self.processor.apply_chat_template(as_messages(conversation, answers), tokenize=False, **options)
        except Exception as error:  # a template raises whatever its author wrote
            raise PromptError("Template", f"the chat template refuses this conversation: {error}") from error
        return str(text)

    def prompt(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """The conversation's prompt, its answers marked."""
        return self.from_parts(conversation, images) if self.by_parts else self.as_a_whole(conversation, images)

    def question(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """See `Formatter.question`: what the processor makes of it with `add_generation_prompt`."""
        if not self.by_parts:
            return self.question_as_a_whole(conversation, images)
        check_question(conversation)
        answers = earlier_answers(conversation)
        check_marks(conversation, images)
        return self._from_text(self._apply(conversation, answers, add_generation_prompt=True), [], answers, images)

    def question_as_a_whole(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """`question` by the processor's own call; its arrays are in `whole`."""
        check_question(conversation)
        answers = earlier_answers(conversation)
        check_marks(conversation, images)
        noted = self._processed(conversation, answers, images, add_generation_prompt=True)
        return self._whole(conversation, answers, images, noted, [], add_generation_prompt=True)

    def before_answers(self) -> tuple[str, str]:
        """What the template writes between a question's text and its answer: where the answer is to be written, and
        where it is trained. Thinking templates differ in the two."""
        turns = [Turn("user", "\ue0f2"), Turn("assistant", "")]
        asked = self._apply(turns[:1], [], add_generation_prompt=True)
        trained = _ANY_MARK.split(self._apply(turns, [_MARK.format(0)]))[0]
        return asked.rpartition("\ue0f2")[2], trained.rpartition("\ue0f2")[2]

    def as_a_whole(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """By the processor's own call; its arrays are in `whole`."""
        answers = answers_of(conversation)
        check_marks(conversation, images)
        noted = self._processed(conversation, answers, images)
        marked = self._processed(conversation, [_MARK.format(i) for i in range(len(answers))], images)
        return self._whole(conversation, answers, images, noted, self._spans(marked.text, noted.text, answers))

    def _processed(
        self, conversation: Sequence[Turn], texts: Sequence[str], images: Sequence[PromptImage], **options: Any
    ) -> Noted:
        """What the processor makes of the conversation with these texts for answers. Raises PromptError."""
        for image in images:
            check_sides(image.pixels)
        pictures = [Image.fromarray(image.pixels) for image in images]
        try:
            return self._noting(as_messages(conversation, texts, pictures), **options)
        except PromptError:
            raise
        except Exception as error:  # a processor raises whatever its author wrote
            cause = f"{type(error).__name__}: {one_line(error)[:300]}"
            raise PromptError("Processor", f"the processor refuses this sample: {cause}") from error

    def _whole(
        self,
        conversation: Sequence[Turn],
        answers: Sequence[str],
        images: Sequence[PromptImage],
        noted: Noted,
        spans: Sequence[tuple[int, int, int]],
        **options: Any,
    ) -> Prompt:
        """The prompt of what the processor made, its answers at `spans` of the text."""

        def arrays_of(others: Sequence[PromptImage]) -> ImageInputs:
            if tuple(others) == tuple(images):
                return noted.arrays
            again = self._processed(conversation, answers, others, **options)
            if not np.array_equal(again.token_ids, noted.token_ids):
                raise PromptError("Processor", "another picture of the same size gives other token ids")
            return again.arrays

        return Prompt.marked(
            noted.token_ids,
            answer_token_turns(noted.offsets, spans),
            image_token_id=self.image_token_id,
            image_spans=(),
            images=images,
            offsets=noted.offsets,
            answers={turn: placed(noted.text, start, answers[turn]) for start, _, turn in spans},
            whole=WholeInputs(arrays_of, images) if noted.arrays else None,
        )

    def from_parts(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """Render, expand each image token to the image's features, tokenise once, mark the answers."""
        check_marks(conversation, images)
        text, spans = self.render(conversation)
        return self._from_text(text, spans, answers_of(conversation), images)

    def _from_text(
        self,
        text: str,
        spans: Sequence[tuple[int, int, int]],
        answers: Sequence[str],
        images: Sequence[PromptImage],
    ) -> Prompt:
        """The prompt of a rendered text, its answers at `spans`."""
        pieces = text.split(self.image_token)
        if len(pieces) - 1 != len(images):
            raise PromptError("ImageCount", f"{len(pieces) - 1} images in the rendered prompt, but {len(images)} given")
        expanded, moved = pieces[0], list(spans)
        places = []  # each image's characters in `expanded`
        place = len(pieces[0])
        for image, piece in zip(images, pieces[1:], strict=True):
            replacement = getattr(image.inputs, "text", None)
            if replacement is None:
                raise PromptError("Template", "the processor has no text that stands for an image by itself")
            growth = len(replacement) - len(self.image_token)
            moved = [
                (new[0] + growth, new[1] + growth, new[2]) if old[0] >= place else new
                for old, new in zip(spans, moved, strict=True)
            ]
            places.append((len(expanded), len(expanded) + len(replacement)))
            expanded += replacement + piece
            place += len(self.image_token) + len(piece)
        bos = self.tokenizer.bos_token
        encoded = self.tokenizer(
            expanded,
            # Most templates write the BOS themselves.
            add_special_tokens=not (bos and text.startswith(bos)),
            return_offsets_mapping=True,
        )
        token_ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        offsets = [tuple(pair) for pair in encoded["offset_mapping"]]
        turn_of = answer_token_turns(offsets, moved)
        features = np.flatnonzero(token_ids == self.image_token_id)
        starts = np.asarray([offsets[position][0] for position in features], dtype=np.int64)
        image_spans = []
        for index, (first, past) in enumerate(places):
            inside = features[(starts >= first) & (starts < past)]
            if not len(inside):
                raise PromptError("Template", f"image {index} has no image token in the prompt")
            image_spans.append((int(inside[0]), int(inside[-1]) + 1))
        return Prompt.marked(
            token_ids,
            turn_of,
            image_token_id=self.image_token_id,
            image_spans=image_spans,
            images=images,
            offsets=np.asarray(offsets, dtype=np.int64).reshape(-1, 2),
            answers={turn: placed(expanded, start, answers[turn]) for start, _, turn in moved},
        )

    def encode(self, text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """A text's token ids by itself, int32 [n], without any that begin or end a prompt, and the characters of each,
        int64 [n, 2]."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return np.asarray(encoded["input_ids"], dtype=np.int32), offsets

    def before_caption(self, image: PromptImage | None) -> npt.NDArray[np.int32]:
        """What a caption follows (`vig_ray.model.plain`), int32 [n]: BOS, where the tokenizer itself puts one before a
        text, and of an image its tokens. Raises PromptError where no text stands for an image by itself."""
        bos = self.tokenizer.bos_token_id
        begins = bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]
        ids = np.asarray([bos] if begins else [], dtype=np.int32)
        if image is None:
            return ids
        text = getattr(image.inputs, "text", None)
        if text is None:
            raise PromptError("Template", "the processor has no text that stands for an image by itself")
        return np.concatenate([ids, self.encode(text)[0]])

    def preprocess(self, pixels: Pixels) -> ImageInputs:
        """One image through the checkpoint's own image processor; nothing where samples go through it as a whole."""
        return self.arrays_of(pixels) if self.by_parts else {}

    def arrays_of(self, pixels: Pixels) -> ImageInputs:
        """One image through the image half of the checkpoint's processor; with the text that stands for it."""
        check_sides(pixels)
        tensors, text = process_image(self.processor, Image.fromarray(pixels), self._image_options)
        arrays = {name: as_array(value) for name, value in tensors.items()}
        return ImageArrays(arrays, text)

    @property
    def mean(self) -> tuple[float, ...]:
        """The image processor's; mid-grey where it normalises nothing, and so names none that means anything."""
        images = self.processor.image_processor
        mean = getattr(images, "image_mean", None) if self._normalises else None
        return tuple(float(x) for x in np.broadcast_to(0.5 if mean is None else mean, 3))

    @property
    def _normalises(self) -> bool:
        return bool(getattr(self.processor.image_processor, "do_normalize", False))

    def normalised(self, inputs: ImageInputs) -> ImageInputs:
        """As they are: the image processor has normalised them. Raises PromptError where it doesn't."""
        if not self._normalises:
            raise PromptError("Processor", "its image processor leaves it to the model to normalise pixels")
        return inputs

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
        """Arrays of several images, joined along their first dimension, others padded with zeros; floats in `dtype`."""
        given = [{name: array for name, array in each.items() if name in self._model_inputs} for each in inputs]
        return tensors(given, device, dtype)

    def batch(self, conversations: Sequence[Sequence[Turn]], images: Sequence[Sequence[PromptImage]]) -> dict[str, Any]:
        """What the processor makes of several conversations together, padded on the right: tensors by name, less those
        that are for the processor itself.

        Raises ValueError where it doesn't take them together.
        """
        given = []
        for turns, pictures in zip(conversations, images, strict=True):
            check_marks(turns, pictures)
            given.append(as_messages(turns, answers_of(turns), [Image.fromarray(image.pixels) for image in pictures]))
        padding = {"padding": True, "padding_side": "right"}
        try:
            out = self.processor.apply_chat_template(
                given, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=padding
            )
        except Exception as error:  # a processor raises whatever its author wrote
            raise ValueError(f"the processor doesn't take these samples together: {one_line(error)[:300]}") from error
        return {name: tensor for name, tensor in out.items() if name not in self.unused_names}

    def identity(self) -> dict[str, Any]:
        """Chat template, tokenizer, image processor and the processor's own settings."""
        parts = ("tokenizer", "image_processor", "video_processor", "chat_template")
        settings = {name: value for name, value in self.processor.to_dict().items() if name not in parts}
        return {
            "by_parts": self.by_parts,
            "processor": settings,
            "template": getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template,
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "end_of_turn": [self.end_of_turn.asked, self.end_of_turn.stops],
            "image_token_id": self.image_token_id,
            "image_processor": self.processor.image_processor.to_dict(),
        }
