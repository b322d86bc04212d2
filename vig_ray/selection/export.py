"""`vig export-data`: the selected samples in a format that other trainers read.

    llava       LLaVA's JSON array: id, image, conversations
    sharegpt    JSON lines for LLaMA-Factory and ms-swift: conversations with <image>, images
    messages    JSON lines for TRL and OpenAI's format: messages of text and image parts, images; and, where tokens have
                weights, the active ones as characters of the answers and the weight of every token

Rows come in the order of samples/; `position` is their place in the training order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field

from vig_ray.dataset.archived import archived
from vig_ray.dataset.images import ImageError, image_bytes
from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.errors import StageError
from vig_ray.model.load import load_formatter, template_fingerprint
from vig_ray.model.prompt import Formatter, PromptError, PromptImage
from vig_ray.options import TrustRemoteCode
from vig_ray.stage import Claim, StageConfig, claim, parquet_files
from vig_ray.storage import absolute, check_writable, filesystem, scheme_of, write_bytes
from vig_ray.tables.directories import dataset, samples_beside, selection_directory
from vig_ray.tables.kept import kept_values

log = logging.getLogger(__name__)

_SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
_BATCH = 1024
_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpg"), (b"RIFF", "webp"), (b"GIF8", "gif"))


class ExportDataConfig(StageConfig):
    """Write the samples of a selection in a format that other trainers read."""

    selection: str = Field(description="selection/ of a finished `vig select`, or the directory that holds it")
    samples: str = Field(description="samples/ that it was selected from")
    out: str = Field(description="file to write: .json for llava, .jsonl for the others")
    format: Literal["llava", "messages", "sharegpt"] = Field("messages", description="what the other trainer reads")
    images: str | None = Field(
        None, description="folder to make image paths relative to; by default they stay as they are"
    )
    model: str | None = Field(
        None, description="for messages: the checkpoint whose tokens the weights are of; by default the one that scored"
    )
    trust_remote_code: TrustRemoteCode = False
    overwrite: bool = Field(False, description="replace an earlier export of other data or with other options")


@dataclass(frozen=True)
class Exported:
    """How many samples and active tokens were written to `out`, and how many images that had no file of their own."""

    samples: int
    active: int
    out: str
    images: int

    def text(self) -> str:
        """For a person."""
        counts = f"{self.samples:,} samples"
        if self.active:
            counts += f", {self.active:,} active tokens"
        if self.images:
            counts += f", {self.images:,} images in {self.out}.images"
        return f"{counts}: {self.out}"


def run(config: ExportDataConfig) -> Exported:
    """Write the file. Memory grows with the selection, not with the dataset. Raises StageError."""
    directory, record = selection_directory(config.selection)
    samples = samples_beside(directory, config.samples, record["identity"]["scores"])
    output = _claim(config, record)
    if output.complete:
        log.info("%s: already complete, nothing to export", config.out)
        return Exported(**output.record["counts"], out=config.out)
    columns = ["sample_key", "position"]
    weighted = config.format == "messages"
    table = dataset(directory).to_table(columns=[*columns, "token_ids", "token_weights"] if weighted else columns)
    place = {key: index for index, key in enumerate(table["sample_key"].to_pylist())}
    formatter = None
    if weighted and table["token_weights"].null_count < table.num_rows:
        formatter = _formatter(config, record)
    written = active = 0
    pictures = _Pictures(config, output)
    output.begin(config)
    os.makedirs(output.work, exist_ok=True)
    partial = os.path.join(output.work, os.path.basename(config.out))
    with open(partial, "w", encoding="utf-8") as file:
        file.write("[\n" if config.format == "llava" else "")
        for row in _rows(samples or config.samples):
            index = place.get(row["sample_key"])
            if index is None:
                continue
            exported = _ROW_OF_FORMAT[config.format](row, pictures)
            if row.get("kept"):
                exported |= {"kept": kept_values(row["kept"])}
            if weighted:
                exported |= {"position": table["position"][index].as_py()}
                weights = table["token_weights"][index].as_py()
                if weights is not None and formatter is not None:
                    exported |= _active(row, table["token_ids"][index].as_py(), weights, formatter)
                    active += sum(weight > 0 for weight in weights)
            between = (",\n" if written else "") if config.format == "llava" else ""
            file.write(between + json.dumps(exported, ensure_ascii=False) + ("" if config.format == "llava" else "\n"))
            written += 1
        file.write("\n]\n" if config.format == "llava" else "")
    if written != len(place):
        raise StageError(f"{config.samples}: holds {written:,} of the {len(place):,} selected samples")
    os.replace(partial, absolute(config.out))
    counts = {"samples": written, "active": active, "images": pictures.written}
    output.commit(config, counts=counts)
    return Exported(**counts, out=config.out)


def _claim(config: ExportDataConfig, record: dict[str, Any]) -> Claim:
    """The file, and beside it the folder of images. Raises StageError where anything else is there."""
    if scheme_of(config.out):
        raise StageError(f"--out {config.out}: takes a file on this machine; copy it from there")
    if os.path.isdir(config.out):
        raise StageError(f"--out {config.out}: is a folder; name a file")
    check_writable(os.path.dirname(absolute(config.out)))
    name = os.path.basename(config.out)
    options = {"format": config.format, "images": config.images and absolute(config.images)}
    identity = {"options": options, "selection": record["identity"], "samples": absolute(config.samples)}
    return claim(
        config.out,
        "export-data",
        identity,
        overwrite=config.overwrite,
        folders=(f"{name}.images",),
        files=(name,),
        resumes=False,
    )


def _formatter(config: ExportDataConfig, record: dict[str, Any]) -> Formatter:
    """The formatter that made the tokens. Raises StageError where the checkpoint has another one."""
    prompts = record.get("prompts", {})
    model = config.model or prompts.get("model")
    if model is None:
        raise StageError("--model: needed for the characters of active tokens; name the checkpoint that scored")
    formatter = load_formatter(
        model,
        prompts.get("template", "auto"),
        prompts.get("max_length"),
        prompts.get("end_of_turn"),
        config.trust_remote_code,
    )
    if template_fingerprint(formatter) != record.get("template"):
        raise StageError(f"--model {model}: its tokenizer or template isn't the one that the scores were made with")
    return formatter


def _rows(samples: str) -> Iterator[dict[str, Any]]:
    fs, _ = filesystem(samples)
    for path in parquet_files(samples):
        with pq.ParquetFile(path, filesystem=fs) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()


class _Pictures:
    """The paths of images: as they are, relative to a folder, or of a file written here where a row or an archive holds
    the bytes."""

    def __init__(self, config: ExportDataConfig, output: Claim) -> None:
        self._relative_to = config.images
        self._folder, self._output = f"{absolute(config.out)}.images", output
        self.written = 0

    def paths(self, row: dict[str, Any]) -> list[str]:
        return [self._path(image) for image in row["images"] or ()]

    def _path(self, image: dict[str, Any]) -> str:
        if image["uri"] is not None and archived(image["uri"]) is None:
            uri = str(image["uri"])
            return os.path.relpath(uri, self._relative_to) if self._relative_to else uri
        try:
            data = image_bytes(image)
        except ImageError as error:
            raise StageError(f"an image can't be written to {self._folder}: {error}") from error
        kind = next((kind for magic, kind in _MAGIC if data.startswith(magic)), "img")
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        path = os.path.join(self._folder, f"{self._output.run}-{digest}.{kind}")
        if not os.path.exists(path):
            write_bytes(path, data)
            self.written += 1
        return path


def _llava(row: dict[str, Any], pictures: _Pictures) -> dict[str, Any]:
    paths = pictures.paths(row)
    exported: dict[str, Any] = {"id": row["id"] if row["id"] is not None else row["sample_key"]}
    if paths:
        exported["image"] = paths[0] if len(paths) == 1 else paths
    return exported | {"conversations": _sharegpt_turns(row)}


def _sharegpt(row: dict[str, Any], pictures: _Pictures) -> dict[str, Any]:
    return {"sample_key": row["sample_key"], "conversations": _sharegpt_turns(row), "images": pictures.paths(row)}


def _sharegpt_turns(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"from": _SHAREGPT_ROLES[turn["role"]], "value": turn["text"]} for turn in row["conversation"]]


def _messages(row: dict[str, Any], pictures: _Pictures) -> dict[str, Any]:
    messages = []
    for turn in row["conversation"]:
        parts: list[dict[str, str]] = []
        for index, piece in enumerate(turn["text"].split(IMAGE_MARK)):
            if index:
                parts.append({"type": "image"})
            if piece:
                parts.append({"type": "text", "text": piece})
        messages.append({"role": turn["role"], "content": parts})
    return {"sample_key": row["sample_key"], "messages": messages, "images": pictures.paths(row)}


_ROW_OF_FORMAT = {"llava": _llava, "sharegpt": _sharegpt, "messages": _messages}


def _active(row: dict[str, Any], ids: list[int], weights: list[float], formatter: Formatter) -> dict[str, Any]:
    """The weights of a row's answer tokens, and the characters of those above 0, by assistant turn.

    Raises StageError where the tokens aren't those that were scored.
    """
    conversation = [Turn(turn["role"], turn["text"]) for turn in row["conversation"]]
    # The characters of answers don't depend on what the images show.
    blank = PromptImage("blank", lambda: np.zeros((64, 64, 3), np.uint8), formatter.preprocess)
    try:
        prompt = formatter.prompt(conversation, [blank] * len(row["images"] or ()))
    except PromptError as error:
        raise StageError(f"{row['sample_key']}: {error}") from error
    if prompt.answer_ids[: len(ids)].tolist() != ids:  # fewer, where a length limit cut the scored ones
        raise StageError(f"{row['sample_key']}: its tokens aren't those that were scored; score the dataset again")
    spans: list[dict[str, int]] = []
    for weight, turn, (first, past) in zip(weights, prompt.turns.tolist(), prompt.answer_chars.tolist(), strict=False):
        if weight <= 0 or first == past:
            continue
        if spans and spans[-1]["turn"] == turn and spans[-1]["end"] >= first:
            spans[-1]["end"] = max(spans[-1]["end"], past)
        else:
            spans.append({"turn": turn, "start": first, "end": past})
    return {"active_spans": spans, "token_ids": ids, "token_weights": weights}
