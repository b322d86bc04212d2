"""Clusters of questions, as VisNec makes them: embeddings of each sample's first question, then mini-batch K-means.

Section 3.2 of arXiv 2603.01195, with the settings of its authors' script: all-MiniLM-L6-v2, K = 20, seed 42.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.dataset.schema import IMAGE_MARK
from vig_ray.errors import StageError
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem, one_line
from vig_ray.tables.order import hashes

WORDS = "words"
FIT_ON_AT_MOST = 1_000_000
"""The most questions that the centres are fitted on: those with the smallest key hashes."""

_FEATURES = 512
_BATCH = 4096
Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def first_question(conversation: Sequence[dict[str, str]], image_mark: str) -> str:
    """The text of the first user turn without its image marks; empty where there is none."""
    for turn in conversation:
        if turn["role"] == "user":
            return " ".join(turn["text"].replace(image_mark, " ").split())
    return ""


def load_embedder(name: str) -> Embed:
    """A function from questions to unit vectors, float32 [questions, D].

    Raises StageError where the libraries or the model are missing.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise StageError(
            "clusters of questions need scikit-learn: pip install 'vig-ray[visnec]', or --clusters 1 does without"
        )
    if name == WORDS:
        from sklearn.feature_extraction.text import HashingVectorizer

        vectorizer = HashingVectorizer(n_features=_FEATURES, alternate_sign=False)
        return lambda texts: vectorizer.transform(texts).toarray().astype(np.float32)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise StageError(
            "--embedding-model: sentence-transformers isn't installed; pip install 'vig-ray[visnec]', or use words"
        ) from error
    try:
        model = SentenceTransformer(name)
    except Exception as error:  # the hub's, transformers' or the file system's
        raise StageError(f"--embedding-model {name}: can't be loaded: {one_line(error)[:300]}") from error

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors: Any = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    return embed


def cluster(vectors_ND: npt.NDArray[np.float32], clusters: int, seed: int) -> Any:
    """K-means fitted on N vectors, with centres [clusters, D]. Raises StageError for fewer vectors than clusters."""
    from sklearn.cluster import MiniBatchKMeans

    if len(vectors_ND) < clusters:
        raise StageError(f"--clusters {clusters}: there are only {len(vectors_ND)} samples with an image")
    return MiniBatchKMeans(n_clusters=clusters, random_state=seed, n_init="auto").fit(vectors_ND)


def cluster_samples(
    samples: str, embedding_model: str, *, clusters: int, seed: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    """The sorted key hashes of all samples with an image, uint64 [N], and the cluster of each, int32 [N].

    Neither depends on how `samples` is cut into files. Raises StageError.
    """
    embed = load_embedder(embedding_model)
    keys = np.sort(np.concatenate([hashes(table["sample_key"], seed) for table in _with_images(samples, [])]))
    if not len(keys):
        raise StageError(f"{samples}: no sample has an image")
    fitted_on = keys[:FIT_ON_AT_MOST]
    embedded = [
        (key_hashes, embed(questions).astype(np.float16))
        for key_hashes, questions in questions_of(samples, seed, up_to=fitted_on[-1])
    ]
    fitted_hashes, vectors = (np.concatenate(parts) for parts in zip(*embedded, strict=True))
    order = np.argsort(fitted_hashes, kind="stable")  # the order decides where K-means starts
    model = cluster(vectors[order].astype(np.float32), clusters, seed)
    of_key = np.zeros(len(keys), dtype=np.int32)
    if len(keys) > len(fitted_on):
        every = questions_of(samples, seed)
        embedded = ((key_hashes, embed(questions)) for key_hashes, questions in every)  # type: ignore[assignment]
    for key_hashes, part in embedded:
        of_key[np.searchsorted(keys, key_hashes)] = model.predict(part.astype(np.float32))
    return keys, of_key


_URI = "images.list.element.uri"
"""Which rows have an image, without reading what may be in the files of it."""


def _with_images(samples: str, columns: list[str]) -> Iterator[pa.Table]:
    fs, _ = filesystem(samples)
    for path in parquet_files(samples):
        with pq.ParquetFile(path, filesystem=fs) as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=["sample_key", _URI, *columns]):
                table = pa.Table.from_batches([batch])
                has_image = pc.greater(pc.fill_null(pc.list_value_length(table["images"]), 0), 0)
                yield table.filter(has_image)


def questions_of(
    samples: str, seed: int, up_to: np.uint64 | None = None
) -> Iterator[tuple[npt.NDArray[np.uint64], list[str]]]:
    """Key hashes and first questions of the samples with an image, batch by batch; only hashes `up_to` this one."""
    for table in _with_images(samples, ["conversation"]):
        key_hashes = hashes(table["sample_key"], seed)
        if up_to is not None:
            table, key_hashes = table.filter(pa.array(key_hashes <= up_to)), key_hashes[key_hashes <= up_to]
        if table.num_rows:
            yield key_hashes, [first_question(turns, IMAGE_MARK) for turns in table["conversation"].to_pylist()]
