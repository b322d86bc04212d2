"""What a replica with an engine answers, asked as an entrance asks it."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from typing import Any

import pytest

from serve_app.options import AppConfig
from serve_app.prepare import PreparedSample, parse_sample, prepare_sample
from serve_app.schema import EXAMPLE_QA, ScoreRequest
from serve_app.scorer import Asked, Scorer, identity_of
from tests.end_to_end.server import wait_until
from tests.serving.conftest import FACTS
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import Prompts
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.prepare import make_passes
from vig_ray.scoring.score import run_passes


def test_a_model_that_gives_way_leaves_nothing(demo_formatter: Any) -> None:
    options = {"name": "torch", **Prompts(CHECKPOINT)._asdict(),
               "dtype": "float32", "device": "cpu", "batch_tokens": None, "vllm": {}}  # fmt: skip
    scorer = Scorer(FACTS.model_dump(), options, 1)
    left = weakref.ref(scorer._engine)
    del scorer
    wait_until(lambda: (gc.collect(), left() is None)[1], 30)


def test_prompts_of_another_version_of_the_model_are_not_scored(engine: TorchEngine, demo_formatter: Any) -> None:
    """While a new version takes the place of an old one, prompts of the one come to the other."""
    config = AppConfig(model=CHECKPOINT)
    passes = make_passes(("clean", "blur"), demo_formatter, blur="fast")
    prepared = prepare_sample(parse_sample(ScoreRequest(**EXAMPLE_QA)), demo_formatter, passes, config)
    assert isinstance(prepared, PreparedSample)
    options = {"name": "torch", **Prompts(CHECKPOINT)._asdict(),
               "dtype": "float32", "device": "cpu", "batch_tokens": None, "vllm": {}}  # fmt: skip
    facts = FACTS.model_dump()
    scorer = Scorer(dict(facts), options, 1)
    asked = [Asked(pickle.dumps(prepared.pair), prepared.tokens, "client", f"request-{number}") for number in range(2)]

    async def main() -> None:
        for changed in ("fingerprint", "template", "dtype", "engine", "vllm"):
            other = identity_of(facts | {changed: "another"})
            assert await scorer.score(asked, other) is None
            assert await scorer.facts(other) is None
        assert await scorer.facts(identity_of(facts)) == facts | {"engine": scorer._engine.description}
        answers = await scorer.score(asked, identity_of(facts))
        assert answers is not None
        ((clean, reference),) = run_passes(engine, [prepared.pair])
        for answer in answers:
            assert answer[0] == pytest.approx(clean, abs=1e-5)
            assert answer[1] == pytest.approx(reference, abs=1e-5)

    asyncio.run(main())
