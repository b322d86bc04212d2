"""`marginal` and `swap` against transformers' own forward on the images that the test itself draws, and scipy."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import special
from transformers import AutoImageProcessor

from tests.model.family import SAMPLES, TOLERANCE, Family, apart
from tests.oracle import plain_logprobs
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.model.prompt import PromptError, PromptImage
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.job import run
from vig_ray.scoring.references.other_images import About, OtherImages
from vig_ray.tables.order import hashes

K = 4


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other-images")
    data = world.write(str(folder / "data"), 40, 3)
    run(config(folder, data, reference=("marginal", "swap")), in_process=True)
    return folder


def config(folder: Path, data: str, **options: Any) -> ScoreConfig:
    return ScoreConfig(data=data, model=CHECKPOINT, out=str(folder), marginal_images=K, reference_seed=5, **options)


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / table).to_pylist()
    return sorted(rows, key=lambda row: row["sample_key"])


def by_hash(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    with_image = [row for row in rows if row["images"]]
    order = np.argsort(hashes(pa.array([row["sample_key"] for row in with_image]), 5))
    return [with_image[place] for place in order]


def uris(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["images"][0]["uri"] for row in rows))


def test_a_sample_has_the_mean_over_the_first_images_that_are_not_its_own(
    scores: Path, demo_model: Any, demo_formatter: Any
) -> None:
    samples, found = rows_of(scores, "samples"), rows_of(scores, "scores")
    drawn = uris(by_hash(samples))[: K + 8]
    images = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    own_among_them = 0
    for sample, row in zip(samples, found, strict=True):
        assert row["error"] is None
        if not sample["images"]:
            assert row["marginal_losses"] is None
            continue
        own = sample["images"][0]["uri"]
        own_among_them += own in drawn[:K]
        others = [uri for uri in drawn if uri != own][:K]
        turns = [Turn(turn["role"], turn["text"]) for turn in sample["conversation"]]
        logp = []
        for uri in others:
            picture = Image.open(uri)
            image = PromptImage(uri, lambda p=picture: np.asarray(p), demo_formatter.preprocess)  # type: ignore[misc]
            logp.append(plain_logprobs(demo_model, images, demo_formatter.prompt(turns, [image]), [picture]))
        logp_KT = np.asarray(logp, np.float64)
        tokens = special.logsumexp(logp_KT, axis=0) - np.log(K)
        np.testing.assert_allclose(row["marginal_logprobs"], tokens, atol=1e-5, rtol=0)
        answers = logp_KT.sum(1)
        loss = -(special.logsumexp(answers) - np.log(K)) / len(tokens)
        assert row["marginal_loss"] == pytest.approx(loss, abs=1e-5)
        np.testing.assert_allclose(row["marginal_losses"], -logp_KT.mean(1), atol=1e-5, rtol=0)
        null = [logp_KT[k] - special.logsumexp(np.delete(logp_KT, k, 0), axis=0, b=1 / (K - 1)) for k in range(K)]
        np.testing.assert_allclose(row["marginal_means"], logp_KT.mean(0), atol=1e-5, rtol=0)
        np.testing.assert_allclose(row["marginal_null"], np.mean(null, 0), atol=2e-5, rtol=0)
        p = np.exp(answers)
        error = np.std(p, ddof=1) / np.sqrt(K) / p.mean() / len(tokens)
        assert row["marginal_error"] == pytest.approx(error, abs=1e-5)
        assert row["vig"] == pytest.approx(row["marginal_loss"] - row["clean_loss"])
    assert own_among_them


def test_swap_is_one_other_image_of_the_samples_source(scores: Path, demo_model: Any, demo_formatter: Any) -> None:
    samples, found = rows_of(scores, "samples"), rows_of(scores, "scores")
    images = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    which = []
    for sample, row in zip(samples, found, strict=True):
        if not sample["images"]:
            continue
        same_source = uris(by_hash([each for each in samples if each["source"] == sample["source"]]))[:16]
        turns = [Turn(turn["role"], turn["text"]) for turn in sample["conversation"]]
        fits = []
        for uri in same_source:
            picture = Image.open(uri)
            image = PromptImage(uri, lambda p=picture: np.asarray(p), demo_formatter.preprocess)  # type: ignore[misc]
            theirs = plain_logprobs(demo_model, images, demo_formatter.prompt(turns, [image]), [picture])
            if np.abs(theirs - row["swap_logprobs"]).max() < 1e-5:
                fits.append(uri)
        assert fits, row["sample_key"]
        assert fits != [sample["images"][0]["uri"]]
        which.append(same_source.index(fits[0]))
    assert len(set(which)) > 3


def test_the_same_scores_when_they_are_added_later(scores: Path, tmp_path: Path) -> None:
    data = str(scores / "samples")
    run(config(tmp_path, data, reference=("marginal",)), in_process=True)
    run(
        ScoreConfig(data=data, model=CHECKPOINT, out=str(tmp_path), reference=("swap",), reference_seed=5),
        in_process=True,
    )
    for mine, theirs in zip(rows_of(tmp_path, "scores"), rows_of(scores, "scores"), strict=True):
        for column in (
            "clean_loss",
            "marginal_loss",
            "swap_loss",
            "marginal_losses",
            "marginal_means",
            "marginal_null",
        ):
            if theirs[column] is None:
                assert mine[column] is None
            else:
                np.testing.assert_allclose(mine[column], theirs[column], atol=1e-5)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl", "gemma3", "mllama"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def test_images_of_other_shapes_move_the_text(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the family's own processor and forward, given the other image in the first one's place."""
    sample, other = SAMPLES["one image"], SAMPLES["wide"]
    prompt = family.prompt("own", sample)
    pictures = family.pictures(other)
    (picture,) = pictures
    image = PromptImage("other", lambda: np.asarray(picture), family.formatter.preprocess)
    one = OtherImages(0, {None: (image,)}, family.formatter, 0, "error")
    turns = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(sample.turns)]
    made = one.of(prompt, About(turns, None, "made/0"))
    monkeypatch.setattr(family, "pictures", lambda _: pictures)
    inputs = family.inputs(sample)
    assert made.token_ids.tolist() == inputs["input_ids"][0].tolist()
    (found,) = family.engine.logprobs([made])
    assert apart(found, family.logprobs(inputs, made)) < TOLERANCE


def test_an_own_image_is_never_taken_and_several_stand_for_several(demo_formatter: Any) -> None:
    def image(key: str, shade: int) -> PromptImage:
        return PromptImage(key, lambda: np.full((40, 40, 3), shade, np.uint8), demo_formatter.preprocess)

    pool = [image(key, 40 * number) for number, key in enumerate("abcd")]
    turns = [Turn("user", "<image>\n<image>\nWhat?"), Turn("assistant", "A circle.")]
    prompt = demo_formatter.prompt(turns, [pool[1], image("z", 9)])
    got = []
    for place in range(3):
        one = OtherImages(place, {None: pool}, demo_formatter, 0, "error")
        got.append([each.key for each in one.of(prompt, About(turns, None, "")).images])
    assert got == [["a", "c"], ["c", "d"], ["d", "a"]]
    with pytest.raises(PromptError, match="NoOther: 3 images of those drawn aren't its own, too few"):
        OtherImages(3, {None: pool}, demo_formatter, 0, "error").of(prompt, About(turns, None, ""))
    with pytest.raises(PromptError, match="NoOther: 0 images of its source"):
        OtherImages(None, {"coco": pool}, demo_formatter, 0, "error").of(prompt, About(turns, "gqa", ""))


def test_too_few_images_are_told_before_an_engine_starts(tmp_path: Path) -> None:
    data = world.write(str(tmp_path / "data"), 4, 3)
    with pytest.raises(StageError, match=r"has 3 images that can be read, .* --marginal-images takes at most 2 here"):
        run(config(tmp_path, data, reference=("marginal",)), in_process=True)
    rows = json.loads(Path(data).read_text())
    for number, row in enumerate(rows):
        row["source"] = f"source-{number}"
    Path(data).write_text(json.dumps([row for row in rows if "image" in row]))
    with pytest.raises(StageError, match=r"no source of .* has two images that can be read"):
        run(ScoreConfig(data=data, model=CHECKPOINT, out=str(tmp_path / "swap"), reference=("swap",)), in_process=True)


def test_a_broken_image_is_not_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = world.write(str(tmp_path / "data"), 16, 3)
    for broken in ("000001", "000002"):
        (tmp_path / "data" / "images" / f"{broken}.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, "vig_ray"):
        run(config(tmp_path, data, reference=("marginal",)), in_process=True)
    assert "2 of the images that were drawn can't be read" in caplog.text
    failed = [row for row in rows_of(tmp_path, "scores") if row["error"]]
    assert failed
    assert all("marginal" not in row["error"].lower() for row in failed)


def test_options_without_their_reference_are_refused() -> None:
    with pytest.raises(ValueError, match="--marginal-images has no effect without --reference marginal"):
        ScoreConfig(data="d", model="m", out="o", marginal_images=4)
    with pytest.raises(ValueError, match="--reference-seed has no effect without --reference marginal or swap"):
        ScoreConfig(data="d", model="m", out="o", reference_seed=4)


def test_one_pass_that_fails_is_the_references_error() -> None:
    from tests.scoring.test_passes import PROMPT, Told, scored

    names = ("clean", "marginal", "marginal", "blur")
    found = scored(Told(-1.0, -2.0, PromptError("TooLong", "x"), -3.0), *[PROMPT] * 4, names=names)
    assert (found["marginal_loss"], found["marginal_losses"], found["blur_loss"]) == (None, None, 3.0)
    assert found["error"] == "Marginal: TooLong: x"
