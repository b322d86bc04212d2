"""Requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MOST = 4096
"""Elements of a list: as objects they take many times their bytes, and no sample has so many."""

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
"""A red square of 8 x 8 pixels, PNG, for examples that run as they stand."""

EXAMPLE_QA: dict[str, Any] = {"question": "What color is the square?", "answer": "The square is red.", "image": _PIXEL}
EXAMPLE_MESSAGES: dict[str, Any] = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PIXEL}"}},
                {"type": "text", "text": "What color is the square?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "The square is red."}]},
    ],
    "tau": 0.5,
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """A piece of text; `<image>` in it stands for the next of `images`."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where an image is: a data URI, or an https URL of a host that the operator lists."""

    url: str


class ImagePart(BaseModel):
    """An image where it stands: by itself (`image_url`, or base64 under `image`), or the next of `images`."""

    type: Literal["image", "image_url"]
    image_url: ImageUrl | str | None = None
    image: str | None = None


class Message(BaseModel):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: (
        str | Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=_MOST)]
    )


class ScoreRequest(_Strict):
    """One sample: `messages` (with `images`, if its parts don't bring them), or `question`, `answer` and `image`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE_QA, EXAMPLE_MESSAGES]})

    messages: list[Message] | None = Field(
        None, max_length=_MOST, description="chat messages as TRL and OpenAI write them"
    )
    images: list[str] | None = Field(None, max_length=_MOST, description="images in order, base64 or data URIs")
    question: str | None = None
    answer: str | None = None
    image: str | None = Field(None, description="the image file in base64, or a data URI")
    tau: float | None = Field(None, allow_inf_nan=False, description="threshold of gain, nats; by default the server's")
    policy: str | None = Field(
        None, description="the policy that decides whether it is kept, one of the server's; by default the key's"
    )
    model: str | None = Field(None, description="one of the server's models by its name; by default the first")
    reference: str | None = Field(None, description="one of the server's references; by default the first")
    reference_images: bool = Field(False, description="answer with the images that stand for 'no image', too")
    text_only: bool = Field(False, description="take a sample without an image, too, and answer with its tokens alone")

    @model_validator(mode="after")
    def _one_form(self) -> ScoreRequest:
        if self.tau is not None and self.policy is not None:
            raise ValueError("send 'tau' or 'policy', not both: a policy has its own thresholds")
        plain = [name for name in ("question", "answer", "image") if getattr(self, name) is not None]
        if self.messages is not None and plain:
            raise ValueError(f"send 'messages' or {plain[0]!r}, not both")
        if self.messages is None:
            missing = [name for name in ("question", "answer", "image") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"{missing[0]!r} is missing; send 'messages', or 'question', 'answer' and 'image'")
            if self.images is not None:
                raise ValueError("'images' goes with 'messages'; 'question' and 'answer' take one 'image'")
        return self


class StreamRequest(ScoreRequest):
    """A line of a stream: a sample, and a name that its answer is given."""

    id: str | None = Field(None, max_length=1000, description="comes back with the answer")


class BatchRequest(_Strict):
    """Several samples; an error in one is reported in its place."""

    items: list[Any] = Field(
        min_length=1,
        max_length=_MOST,
        description="samples as POST /v1/score takes them",
        examples=[[EXAMPLE_QA, EXAMPLE_MESSAGES]],
    )


class Token(BaseModel):
    """One answer token. Log-probs are natural logarithms, gains are in nats."""

    text: str = Field(description="the text it adds; an end-of-turn token its own name")
    id: int
    turn: int = Field(description="which assistant turn it is in, from 0")
    start: int = Field(description="first character in the turn's text")
    end: int = Field(description="the one past its last")
    clean_logprob: float
    reference_logprob: float
    gain: float = Field(description="clean_logprob - reference_logprob")
    active: bool | None = Field(description="gain >= tau; null without tau")


class Reference(BaseModel):
    """What stood for 'no image'."""

    name: str
    parameters: dict[str, Any]
    kernels: list[int] = Field(description="the blur's kernel for each image, pixels; its sigma is kernel - 1")


class ModelFacts(BaseModel):
    """What scores: the same facts as in the batch job's record."""

    name: str
    fingerprint: str
    template: str
    dtype: str
    engine: str
    vllm: dict[str, Any] | None = Field(None, description="of vLLM's options those that decide its numbers")


class Decision(BaseModel):
    """What a policy decided of the sample."""

    policy: str
    verdict: Literal["kept", "dropped"] = Field(description="a dry run's is always kept")
    reason: str = Field(description="the numbers that decided, beside what the policy asks for")
    dry_run: bool = Field(description="the policy drops nothing, and only says and counts what it would have dropped")
    would: Literal["kept", "dropped"] | None = Field(description="of a dry run, what would have been; else null")


class Score(BaseModel):
    """What the image contributes to one sample."""

    vig: float = Field(description="visual information gain, nats: reference_loss - clean_loss")
    clean_loss: float
    reference_loss: float
    clean_perplexity: float | None = Field(description="null where it is beyond a float")
    reference_perplexity: float | None
    num_answer_tokens: int
    tokens: list[Token]
    tau: float | None
    kept: bool | None = Field(description="vig >= tau; null without tau; with a policy what it decided")
    active_tokens: int | None
    note: str | None = Field(None, description="what the model's authors' own training does otherwise")
    model: ModelFacts
    reference: Reference
    decision: Decision | None = Field(None, description="null without a policy")
    reference_images: list[str] | None = Field(None, description="data URIs, at most 512 pixels a side")


class TextOnly(BaseModel):
    """A sample without an image, where the request takes these (`text_only`): its answer tokens, and no gain."""

    token_ids: list[int]
    turns: list[int] = Field(description="which assistant turn each token is in, from 0")
    note: str | None = Field(None, description="as of a score; or why its image is left out")
    model: ModelFacts


class Problem(BaseModel):
    """An error: a short name and a message."""

    kind: str
    message: str


class Failure(BaseModel):
    """The body of an error response."""

    error: Problem


class Readiness(BaseModel):
    """Whether requests are answered: `status` is ready, or loading while no engine has loaded the model."""

    status: Literal["ready", "loading"]


class Loading(Readiness):
    """The body of a 503 of /readyz."""

    model: str
    seconds: float = Field(description="for how long it has been loading, as far as this process knows")


class Item(BaseModel):
    """A score or an error."""

    result: Score | TextOnly | None = None
    error: Problem | None = None


class StreamItem(Item):
    """A line that answers one of a stream."""

    index: int = Field(description="which line of the request, from 0, empty ones not counted")
    id: str | None = None


class StreamEnd(BaseModel):
    """The last line of a stream's answer: without it the answer was cut off."""

    end: bool = Field(description="whether the whole request was read; false with `error`, which says why not")
    samples: int = Field(description="how many lines were answered")
    failed: int = Field(description="how many of them by an error")
    error: Problem | None = None


class BatchScores(BaseModel):
    """One item for each sample, in order."""

    results: list[Item]


class Offer(BaseModel):
    """A model that a request may name, with the references that it may name with it; the first is the default."""

    name: str
    references: list[str]


class ModelInfo(ModelFacts):
    """What scores, and within which limits: of the first model and reference, which is what a request gets that names
    none."""

    models: list[Offer] = Field(description="all that a request may name, the default first")

    version: str = Field(description="of vig-ray")
    reference: str
    reference_parameters: dict[str, Any]
    tau: float | None
    max_length: int
    max_body_mb: float
    max_image_pixels: int
    max_images: int
    max_request_pixels: int
    max_decoded_pixels: int
    max_answer_tokens: int
    max_items: int
    image_hosts: list[str]
