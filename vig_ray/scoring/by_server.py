"""`vig score --server`: a dataset scored by a running `vig serve`, into the files that the batch job writes.

The samples are read here and sent in batches; what comes back are the log-probs, token ids and turns of each, from
which rows are made as the job makes them. No model is loaded in this process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from vig_ray.client import Client, Failed, ModelFacts, ModelInfo, Outcome, Score, ServerError, TextOnly
from vig_ray.dataset.images import ImageError, image_bytes
from vig_ray.dataset.importing import identity_of
from vig_ray.errors import StageError
from vig_ray.pipeline import count_samples
from vig_ray.progress import RowProgress
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.gain import loss
from vig_ray.scoring.in_process import BlockFiles, blocks_to_do
from vig_ray.scoring.schema import scores_schema
from vig_ray.scoring.summary import ScoreSummary, summarise
from vig_ray.stage import Claim, claim, read_stage
from vig_ray.storage import join
from vig_ray.tables.passes import CLEAN, logprobs_column, loss_column

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

_SECONDS = 600.0  # for a batch; the server's own limit, --timeout, ends it before
_RETRIES_AT_FIRST = 2  # a wrong address is told soon
_RETRIES = 20  # ten minutes, in which a server is replaced
_ROWS_READ_AT_ONCE = 64


def model_of(config: ScoreConfig) -> ModelInfo:
    """What the server scores with. Raises StageError where it can't be asked, or isn't what the config says."""
    with _client(config, _RETRIES_AT_FIRST) as client:
        info = _model(client, config)
    if info.version is None:
        raise StageError(
            f"--server {config.server}: an earlier vig serve, whose answers lack what rows need; update it"
        )
    return info


def _model(client: Client, config: ScoreConfig) -> ModelInfo:
    """Raises StageError where the server hasn't the model or the reference that is asked for."""
    (reference,) = config.reference
    asked = reference if "reference" in config.model_fields_set else None
    try:
        return client.model(config.server_model, asked)
    except ServerError as error:
        if error.status != 422:
            raise
        options = " ".join(
            f"{option} {name}" for option, name in (("--server-model", config.server_model), ("--reference", asked))
            if name is not None
        )  # fmt: skip
        raise StageError(f"{options}: --server {config.server}: {error.message}") from error


def run(config: ScoreConfig, samples: str, info: ModelInfo) -> ScoreSummary:
    """Score `samples` by the server that said `info`; returns the summary of what `OUT/scores/` holds.

    Killed, or stopped because the server was gone for too long, it goes on where it was. Raises StageError where `OUT`
    holds something else: scores by another model, template, reference, engine or precision, or within other limits.
    """
    names = (info.reference,)
    scores = join(config.out, "scores")
    output = claim(scores, "score", _identity(samples, info), overwrite=config.overwrite)
    if output.complete:
        log.info("%s: already complete, nothing to score; vig is that of %s", scores, info.reference)
        return summarise(scores, names)
    # As if it had been asked for here: readers of the record look for the model and its reference there.
    known = config.model_copy(
        update={"model": info.name, "reference": names, "dtype": info.dtype, "max_length": info.max_length}
    )
    output.begin(known)
    log.info("%s: %s, %s, %s by %s", config.server, info.name, info.reference, info.dtype, info.engine)
    began = time.time()
    _score(config, samples, output, info)
    summary = summarise(scores, names, output.paths)
    if summary.read != count_samples(samples):
        raise StageError(
            f"{scores}: {summary.read:,} rows written for {count_samples(samples):,} samples; please report it, and "
            "run again with another --out"
        )
    output.commit(
        known,
        counts=summary.counts(),
        gains=summary.gains(),
        kept=(read_stage(samples) or {}).get("kept", {}),
        timing={"total_s": time.time() - began, "began": began},
        server=info.model_dump(mode="json"),
    )
    return summary


def _identity(samples: str, info: ModelInfo) -> dict[str, Any]:
    """What must be equal for scores to belong to the same run, as of a run without a server; JSON values.

    `server` tells the two apart: the server has a limit of its own, and knows an image by its bytes alone.
    """
    return {
        "samples": identity_of(read_stage(samples) or {}),
        "model": info.fingerprint,
        "template": info.template,
        "engine": _engine(info),
        "references": [{"name": info.reference, "parameters": info.reference_parameters}],
        "dtype": info.dtype,
        "vllm": info.vllm,
        "max_length": info.max_length,
        "too_long": "error",
        "max_image_pixels": info.max_image_pixels,
        "server": {"max_answer_tokens": info.max_answer_tokens},
    }


def _engine(facts: ModelFacts) -> str:
    """The engine's name. A server describes it at length, which may be another after its next start."""
    return facts.engine.partition(" ")[0]


def _decides(facts: ModelFacts, reference: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of what scores, what decides the numbers; the last two are of the reference."""
    return facts.fingerprint, facts.template, facts.dtype, _engine(facts), facts.vllm, reference, dict(parameters)


def _client(config: ScoreConfig, retries: int) -> Client:
    assert config.server is not None
    key, requests = _key(config.server_key), config.server_requests
    return Client(config.server, key=key, timeout=_SECONDS, retries=retries, under_way=requests)


def _key(path: str | None) -> str | None:
    """The key in a file, as `vig serve --keys` takes it. Raises StageError where there isn't one."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"--server-key {path}: can't be read") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) != 1 or not keys[0].isascii():
        raise StageError(f"--server-key {path}: holds {len(keys)} lines with a key; leave one, of ASCII letters")
    return keys[0]


def _score(config: ScoreConfig, samples: str, output: Claim, info: ModelInfo) -> None:
    """Write a row for each sample that has none yet."""
    table = scores_schema([info.reference])
    files = BlockFiles(output, table)
    sent: deque[Row] = deque()  # rows whose outcome is still to come

    def given() -> Iterator[dict[str, Any] | Failed]:
        for row in _rows(samples, files.done):
            sent.append({name: value for name, value in row.items() if name not in ("images", "conversation")})
            yield _sample(row, info)

    made: list[dict[str, Any]] = []
    refused: set[int] = set()  # of them, what the server has refused: within limits that it doesn't tell with it

    def write() -> None:
        if made:
            files.write(pa.Table.from_pylist(made, schema=table))
        made.clear()
        refused.clear()

    count, total = len(files.done), count_samples(samples)
    try:
        with RowProgress("score", total, done=count) as bar, _client(config, _RETRIES) as client:

            def check() -> None:
                if _identity(samples, _model(client, config)) != _identity(samples, info):
                    raise _changed(info)

            check()
            for outcome in client.score_many(given()):
                row = sent.popleft()
                made.append(_scored(row, outcome, info))
                if isinstance(outcome, Failed) and row["error"] is None:
                    refused.add(len(made) - 1)
                count += 1
                if len(made) == config.rows_per_file:
                    check()
                    write()
                bar.update(count)
            check()
            write()
    finally:  # a server that is gone takes nothing of what it has scored; what it has refused is asked for again
        made[:] = [row for number, row in enumerate(made) if number not in refused]
        write()


def _rows(samples: str, done: pa.Array) -> Iterator[Row]:
    """The rows of samples/ in order, without those that are done."""
    for block in blocks_to_do(samples, done, _ROWS_READ_AT_ONCE):
        yield from block.to_pylist()


def _sample(row: Row, info: ModelInfo) -> dict[str, Any] | Failed:
    """A row of samples/ as the server takes it, its images by their bytes; or why there is nothing to send."""
    if row["error"] is not None:
        return _failed(row["error"])
    try:
        images = [image_bytes(image) for image in row["images"] or ()]
    except ImageError as error:
        return _failed(str(error))
    messages = [{"role": turn["role"], "content": turn["text"]} for turn in row["conversation"]]
    scorer = {"model": info.name, "reference": info.reference} if info.models else {}  # an earlier one has just one
    return {"messages": messages, "images": images, "text_only": True, **scorer}


def _failed(error: str) -> Failed:
    """An error as a row has it, "Kind: cause"."""
    kind, _, cause = error.partition(": ")
    return Failed(kind, cause)


def _changed(info: ModelInfo) -> StageError:
    return StageError(
        "--server: it answers otherwise than at the run's beginning, by another model, reference or limit. Have it "
        f"score with {info.name} ({info.fingerprint}) as before and give the same command, or choose another --out"
    )


def _scored(row: Row, outcome: Outcome, info: ModelInfo) -> dict[str, Any]:
    """A row of scores/. `row`: the sample's. Raises StageError where another model has answered than began."""
    scored = {name: row[name] for name in ("sample_key", "id", "source", "kept")}
    if isinstance(outcome, Failed):
        return scored | {"error": row["error"] or f"{outcome.kind}: {outcome.message}"}
    begun = info.reference, info.reference_parameters
    scoring = (outcome.reference.name, outcome.reference.parameters) if isinstance(outcome, Score) else begun
    if _decides(outcome.model, *scoring) != _decides(info, *begun):
        raise _changed(info)
    # The server cuts no prompt: one beyond its limit is an error.
    scored |= {"num_truncated_tokens": 0, "note": outcome.note}
    if isinstance(outcome, TextOnly):
        return scored | _tokens(outcome.token_ids, outcome.turns)
    scored |= _tokens([token.id for token in outcome.tokens], [token.turn for token in outcome.tokens])
    clean_T = np.array([token.clean_logprob for token in outcome.tokens], dtype=np.float32)
    reference_T = np.array([token.reference_logprob for token in outcome.tokens], dtype=np.float32)
    for name, logp_T in ((CLEAN, clean_T), (info.reference, reference_T)):
        scored |= {logprobs_column(name): logp_T, loss_column(name): loss(logp_T)}
    return scored | {"vig": scored[loss_column(info.reference)] - scored[loss_column(CLEAN)]}


def _tokens(ids: list[int], turns: list[int]) -> dict[str, Any]:
    return {"token_ids": ids, "turn": turns, "num_answer_tokens": len(ids)}
