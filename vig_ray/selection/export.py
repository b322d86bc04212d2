"""`vig export-data`: the selected samples in a format that other trainers read, with their token weights where it can.

Rows come in the order of samples/; `position`, where a format has it, is their place in the training order. A format
that can't say which tokens are trained takes a selection whose weights are all 1; any other is refused, unless the user
asks for its samples alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vig_ray.dataset.archived import archived
from vig_ray.dataset.images import ImageError, image_bytes
from vig_ray.errors import StageError
from vig_ray.model.llava import LlavaFormatter
from vig_ray.model.load import load_formatter, template_fingerprint
from vig_ray.model.prompt import Formatter
from vig_ray.options import TrustRemoteCode
from vig_ray.selection.answer_tokens import AnswerTokens, answer_tokens
from vig_ray.selection.export_file import row_file
from vig_ray.selection.export_rows import FORMATS, Format, FormatName, kept
from vig_ray.stage import Claim, StageConfig, claim, parquet_files, read_stage
from vig_ray.storage import absolute, check_writable, filesystem, scheme_of, write_bytes
from vig_ray.tables.directories import dataset, samples_beside, selection_directory

log = logging.getLogger(__name__)

_BATCH = 1024
_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpg"), (b"RIFF", "webp"), (b"GIF8", "gif"))


class ExportDataConfig(StageConfig):
    """Write the samples of a selection in a format that other trainers read."""

    selection: str = Field(description="selection/ of a finished `vig select`, or the directory that holds it")
    samples: str = Field(description="samples/ that it was selected from")
    out: str = Field(description="file to write: .json for llava; .jsonl or .parquet for the others")
    format: FormatName = Field(
        "messages", description="what the other trainer reads; docs/trainers.md says which is whose"
    )
    samples_only: bool = Field(
        False, description="leave the token weights out, so that all answer tokens of the samples are trained"
    )
    images: str | None = Field(
        None, description="folder to make image paths relative to; by default they stay as they are"
    )
    model: str | None = Field(
        None, description="the checkpoint whose tokens the weights are of; by default the one that scored"
    )
    trust_remote_code: TrustRemoteCode = False
    overwrite: bool = Field(False, description="replace an earlier export of other data or with other options")


@dataclass(frozen=True)
class Exported:
    """How many samples and active tokens were written to `out`, and how many images that had no file of their own.

    `told`: what a person should know of how the other trainer takes them.
    """

    samples: int
    active: int
    out: str
    images: int
    told: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For a person."""
        counts = f"{self.samples:,} samples"
        if self.active:
            counts += f", {self.active:,} active tokens"
        if self.images:
            counts += f", {self.images:,} images in {self.out}.images"
        return "\n".join([f"{counts}: {self.out}", *self.told])


def run(config: ExportDataConfig) -> Exported:
    """Write the file. Memory grows with the selection, not with the dataset. Raises StageError."""
    directory, record = selection_directory(config.selection)
    samples = samples_beside(directory, config.samples, record["identity"]["scores"])
    output = _claim(config, record, samples or config.samples)
    form = FORMATS[config.format]
    columns = ["sample_key", "position", "token_ids", "token_weights"]
    table = dataset(directory).to_table(columns=columns[:2] if config.samples_only else columns)
    weighted = not config.samples_only and table["token_weights"].null_count < table.num_rows
    if weighted and not form.weighted:  # before what an earlier version wrote is taken for it
        _check_weights(config, table)
    if output.complete:
        log.info("%s: already complete, nothing to export", config.out)
        return Exported(**output.record["counts"], out=config.out, told=output.record.get("told", []))
    weights = _Weights(config, record, form, table if weighted and form.weighted else None)
    place = {key: index for index, key in enumerate(table["sample_key"].to_pylist())}
    written = active = 0
    left_out: list[str] = []
    pictures = _Pictures(config, output)
    output.begin(config)
    os.makedirs(output.work, exist_ok=True)
    partial = os.path.join(output.work, os.path.basename(config.out))
    parquet = config.out.endswith(".parquet")
    with row_file(partial, form.schema, parquet=parquet) as file:
        for row in _rows(samples or config.samples):
            index = place.get(row["sample_key"])
            if index is None:
                continue
            tokens = weights.of(row, index)
            row["position"] = table["position"][index].as_py()
            file.add(form.row(row, pictures.paths(row), tokens) | kept(row, as_pairs=parquet))
            active += tokens.active if tokens else 0
            written += 1
            if form.leaves_out is not None and form.leaves_out(row):
                left_out.append(row["sample_key"])
    if written != len(place):
        raise StageError(f"{config.samples}: holds {written:,} of the {len(place):,} selected samples")
    os.replace(partial, absolute(config.out))
    counts = {"samples": written, "active": active, "images": pictures.written}
    told = weights.told
    if left_out:
        told.append(
            f"{len(left_out):,} samples, {left_out[0]} first, aren't questions and answers in turn: the trainer leaves "
            "them out, with a warning"
        )
    output.commit(config, counts=counts, told=told)
    return Exported(**counts, out=config.out, told=told)


def _check_weights(config: ExportDataConfig, table: pa.Table) -> None:
    """Raise StageError where a selection has weights that the format has no place for."""
    different = _other_than(table, (1,))
    if different is not None:
        raise StageError(
            f"--format {config.format}: can't say which tokens are trained, and {different} has some that "
            "aren't, or weigh less or more; give --samples-only to train all answer tokens of the samples, or "
            "take a trainer that docs/trainers.md has token weights for"
        )


class _Weights:
    """The answer tokens of a selection's rows. `table`: the selection, None where its weights aren't written.

    Raises StageError where the trainer wouldn't take them as they are.
    """

    def __init__(self, config: ExportDataConfig, record: dict[str, Any], form: Format, table: pa.Table | None) -> None:
        self.told: list[str] = []
        self._table, self._formatter = table, None
        if table is None:
            return
        different = _other_than(table, (1,))
        self._formatter = _formatter(config, record)
        real = _other_than(table, (0, 1))
        if config.format == "swift" and real is not None:
            if isinstance(getattr(self._formatter, "of", self._formatter), LlavaFormatter):
                raise StageError(
                    f"--format swift: {real} has weights other than 0 and 1, which ms-swift puts on other tokens where "
                    "a LLaVA-1.5's images are; train with vig train, TRL or transformers"
                )
            self.told.append("train with --is_binary_loss_scale false: else ms-swift makes 1 of every weight above 0")
        if form.unread and different is not None:
            self.told.append(form.unread)

    def of(self, row: dict[str, Any], index: int) -> AnswerTokens | None:
        """The tokens of a row of samples/ that is the row `index` of the selection; None without weights."""
        if self._table is None or self._formatter is None:
            return None
        ids, weights = self._table["token_ids"][index].as_py(), self._table["token_weights"][index].as_py()
        return answer_tokens(row, ids, weights, self._formatter)


def _other_than(table: pa.Table, values: tuple[int, ...]) -> str | None:
    """The key of the first row that has a weight other than these; None where there is none."""
    for batch in table.select(["sample_key", "token_weights"]).to_batches():
        weights = batch["token_weights"]
        other = ~np.isin(weights.flatten().to_numpy(zero_copy_only=False), values)
        if other.any():
            row = weights.value_parent_indices()[int(other.argmax())].as_py()
            return str(batch["sample_key"][row].as_py())
    return None


def _claim(config: ExportDataConfig, record: dict[str, Any], samples: str) -> Claim:
    """The file, and beside it the folder of images. Raises StageError where anything else is there."""
    if scheme_of(config.out):
        raise StageError(f"--out {config.out}: takes a file on this machine; copy it from there")
    if os.path.isdir(config.out):
        raise StageError(f"--out {config.out}: is a folder; name a file")
    if config.out.endswith(".parquet") and FORMATS[config.format].schema is None:
        raise StageError(f"--out {config.out}: --format {config.format} is a JSON array; name a .json")
    check_writable(os.path.dirname(absolute(config.out)))
    name = os.path.basename(config.out)
    options: dict[str, Any] = {"format": config.format, "images": config.images and absolute(config.images)}
    if config.samples_only:
        options["samples_only"] = True
    elif config.format == "llava":
        options["tokens"] = True  # earlier versions left them out
    keep = (read_stage(samples) or {}).get("keep")
    if keep:
        options["keep"] = keep
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
