"""Clusters of questions, and VisNec's selection within them, against sorting in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.selection.made import made_up, selected, write
from vig_ray.dataset.schema import SAMPLES
from vig_ray.errors import StageError
from vig_ray.selection import clusters, job
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import StageConfig, write_stage
from vig_ray.tables.order import hashes

QUESTIONS = ("What color is the {}?", "Where does the {} stand?", "Read the text on the {}.", "How many {} are there?")
IDENTITY = {"samples": {"inputs": ["made"], "format": "llava"}}


def write_samples(directory: Path, rows: list[dict[str, Any]], *, files: int = 2) -> None:
    """samples/ for made-up scores: the kind of question goes by the row's number."""
    samples = directory / "samples"
    samples.mkdir(parents=True)
    made = []
    for row in rows:
        number = int(row["sample_key"].split("/")[1])
        question = QUESTIONS[number % 4].format(f"thing{number % 7}")
        has_image = row["vig"] is not None or row["error"] is not None
        mark = "<image>\n" if has_image else ""
        conversation = [{"role": "user", "text": f"{mark}{question}"}, {"role": "assistant", "text": "Yes."}]
        image = {"uri": f"{number}.png", "bytes": None}
        made.append(
            dict.fromkeys(SAMPLES.names)
            | {
                "sample_key": row["sample_key"],
                "images": [image] if has_image else [],
                "conversation": conversation,
            }
        )
    for index, part in enumerate(np.array_split(np.arange(len(made)), files)):
        table = pa.Table.from_pylist([made[i] for i in part], schema=SAMPLES)
        pq.write_table(table, samples / f"{index}.parquet")
    write_stage(str(samples), "import", StageConfig(), **IDENTITY["samples"])


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return made_up(600, seed=2)


@pytest.fixture(scope="module")
def made(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("made")
    write_samples(directory, rows)
    return write(directory, rows, identity=IDENTITY)


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence-transformers model of two small layers, as its library saves one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as parts
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word.strip("?.").lower() for q in QUESTIONS for word in q.split()} | {"thing", "?", "."})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"thing{i}" for i in range(7))]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokens), **shape)).save_pretrained(folder)
    transformer = parts.Transformer(str(folder))
    pooled = SentenceTransformer(modules=[transformer, parts.Pooling(32)], device="cpu")
    pooled.save(str(folder / "whole"))
    return str(folder / "whole")


@pytest.mark.parametrize("model", ["words", "sentence"])
def test_visnec_keeps_the_top_of_every_cluster(
    made: str, rows: Any, tmp_path: Path, model: str, sentence_model: str
) -> None:
    name = sentence_model if model == "sentence" else model
    found = job.run(
        SelectConfig(scores=made, out=str(tmp_path), strategy="visnec", r=20, clusters=4, embedding_model=name, seed=42)
    )
    keys, of_key = clusters.cluster_samples(f"{made}/samples", name, clusters=4, seed=42)
    members: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["vig"] is not None and row["vig"] > 0:
            (own,) = hashes(pa.array([row["sample_key"]]), 42)
            members.setdefault(int(of_key[np.searchsorted(keys, own)]), []).append(row)
    assert len(members) == 4 if model == "words" else len(members) > 1  # random weights tell little apart
    expected = set()
    for cluster in members.values():
        cluster.sort(key=lambda row: -row["vig"])
        expected |= {row["sample_key"] for row in cluster[: max(1, int(len(cluster) * 0.2))]}
    text = {row["sample_key"] for row in rows if row["vig"] is None and row["error"] is None}
    assert {row["sample_key"] for row in selected(tmp_path)} == expected | text
    assert len(found.kept[0].thresholds) == len(members)


def test_questions_are_read_without_the_bytes_of_images(tmp_path: Path) -> None:
    """In one row group of some megabytes of them, the column chunks of questions, keys and uris are touched alone."""
    rows = made_up(30, seed=2)
    write_samples(tmp_path, rows, files=1)
    path = tmp_path / "samples" / "0.parquet"
    table = pq.read_table(path)
    images = [[image | {"bytes": bytes(100_000)} for image in row] for row in table["images"].to_pylist()]
    place = table.column_names.index("images")
    table = table.set_column(place, SAMPLES.field("images"), pa.array(images, SAMPLES.field("images").type))
    pq.write_table(table, path, compression="none", use_dictionary=False)
    assert path.stat().st_size > 2_000_000
    before = pa.total_allocated_bytes()
    tables = [*clusters._with_images(str(tmp_path / "samples"), ["conversation"])]
    assert pa.total_allocated_bytes() - before < 500_000
    found = {key for table in tables for key in table["sample_key"].to_pylist()}
    assert found == {row["sample_key"] for row in rows if row["vig"] is not None or row["error"] is not None}


def test_words_tell_kinds_of_questions_apart(made: str, rows: Any) -> None:
    keys, of_key = clusters.cluster_samples(f"{made}/samples", "words", clusters=4, seed=42)
    kinds: dict[int, set[int]] = {}
    for row in rows:
        (own,) = hashes(pa.array([row["sample_key"]]), 42)
        place = np.searchsorted(keys, own)
        if place < len(keys) and keys[place] == own:
            kinds.setdefault(int(row["sample_key"].split("/")[1]) % 4, set()).add(int(of_key[place]))
    assert all(len(found) == 1 for found in kinds.values())
    assert len(set().union(*kinds.values())) == 4


def test_clusters_do_not_depend_on_files_or_on_how_many_the_centres_are_fitted_on_at_once(
    made: str, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_samples(tmp_path, [rows[i] for i in np.random.default_rng(0).permutation(len(rows))], files=5)
    one = clusters.cluster_samples(f"{made}/samples", "words", clusters=4, seed=1)
    other = clusters.cluster_samples(f"{tmp_path}/samples", "words", clusters=4, seed=1)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.setattr(clusters, "FIT_ON_AT_MOST", 200)
    keys, of_key = clusters.cluster_samples(f"{made}/samples", "words", clusters=4, seed=1)
    np.testing.assert_array_equal(keys, one[0])
    # The same four kinds, perhaps under other numbers.
    pairs = set(zip(of_key.tolist(), one[1].tolist(), strict=True))
    assert len(pairs) == 4


def test_wrong_samples_and_models_are_one_line(made: str, rows: Any, tmp_path: Path) -> None:
    def refused(told: str, **options: Any) -> None:
        with pytest.raises(StageError, match=told):
            job.run(SelectConfig(scores=made, out=str(tmp_path / "o"), strategy="visnec", **options))

    other = tmp_path / "other"
    write_samples(other, rows)
    write_stage(str(other / "samples"), "import", StageConfig(), inputs=["another"], format="llava")
    refused("not the samples that", samples=str(other / "samples"))
    refused("can't be loaded", embedding_model=str(tmp_path / "nowhere"))
    refused("only .* samples with an image", embedding_model="words", clusters=5000)
