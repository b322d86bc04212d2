"""vLLM is as vig_ray/compat/vllm.py takes it to be. What fails here names what a release has changed."""

from __future__ import annotations

import importlib
import inspect
import queue
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.scoring.prompts import ask, picture
from vig_ray.compat import vllm as compat
from vig_ray.demo import CHECKPOINT, world

pytestmark = pytest.mark.vllm


@pytest.fixture
def engine(vllm_engine: Callable[[str], Any]) -> Any:
    return vllm_engine(CHECKPOINT)


def test_processors_tell_how_arrays_are_shared_out_over_images() -> None:
    from vllm.multimodal.processing import BaseMultiModalProcessor

    arguments = list(inspect.signature(BaseMultiModalProcessor._get_mm_fields_config).parameters)
    assert arguments == ["self", "hf_inputs", "hf_processor_mm_kwargs"], "_get_mm_fields_config: see image_item_maker"


def test_items_hold_what_vllms_own_processor_makes(engine: Any, demo_formatter: Any) -> None:
    scene = world.draw(world.random_scene(random.Random(4)))
    theirs, places = compat.processed(engine.engine, scene)
    ours = engine.item(picture(4, demo_formatter)).get_data()
    assert set(ours) == set(theirs), "another layout of an image's item: see image_item_maker and processed"
    for name, array in theirs.items():
        torch.testing.assert_close(torch.as_tensor(ours[name]), torch.as_tensor(array), rtol=0, atol=0.1)
    assert places == demo_formatter.num_image_tokens


def test_a_request_says_where_images_lie(engine: Any, demo_formatter: Any) -> None:
    image = picture(4, demo_formatter)
    prompt = ask(demo_formatter, "Seven.", image)
    ((start, past),) = prompt.image_spans.tolist()
    features = torch.ones(past - start, dtype=torch.bool)
    features[1] = False
    placed = compat.Placed(engine.item(image), image.key, start, past - start, features)
    request = compat.engine_input(prompt.token_ids.tolist(), [placed])
    assert request["mm_hashes"] == {"image": [image.key]}
    (place,) = request["mm_placeholders"]["image"]
    assert (place.offset, place.length, place.get_num_embeds()) == (start, past - start, past - start - 1)
    assert compat.engine_input([1, 2], [])["prompt_token_ids"] == [1, 2]


def test_what_the_config_says_of_runner_and_attention(engine: Any) -> None:
    import os

    asked = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    assert compat.uses_v2_runner(engine.engine) is (asked == "1"), "on a CPU V1 is the default: see uses_v2_runner"
    assert compat.images_see_both_ways(engine.engine) is False


def test_an_engine_in_this_process_has_none_of_its_own(engine: Any) -> None:
    core = engine.engine.engine_core
    assert not compat.has_process(core)
    assert not compat.process_died(core)
    assert not compat.means_death(ValueError("too long"), core)


def test_who_waits_for_a_dead_process_can_be_woken() -> None:
    """The client of an engine in a process of its own, without the process."""
    from vllm.v1.engine.core_client import BackgroundResources, SyncMPClient
    from vllm.v1.engine.exceptions import EngineDeadError

    source = inspect.getsource(SyncMPClient)
    assert "self.outputs_queue = queue.Queue" in source, "SyncMPClient has another outputs_queue: see has_process"
    client = SyncMPClient.__new__(SyncMPClient)
    client.resources = BackgroundResources(ctx=None)
    client.outputs_queue = queue.Queue()
    assert compat.has_process(client)
    assert not compat.process_died(client)
    client.resources()  # as vLLM does when the process is gone
    assert compat.process_died(client), "BackgroundResources.engine_dead isn't set any more: see process_died"
    compat.wake(client)
    with pytest.raises(EngineDeadError):
        client.get_output()
    assert compat.means_death(OSError("socket closed"), client)
    assert compat.means_death(EngineDeadError(), object())


def test_models_map_the_names_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from vig_ray.scoring.engines.vllm_worker import _NESTING

    for module, name in _NESTING:
        model = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)
        assert getattr(model, "hf_to_vllm_mapper", None) is not None, f"{name} has no hf_to_vllm_mapper any more"
        monkeypatch.setattr(model, "hf_to_vllm_mapper", model.hf_to_vllm_mapper)  # put back at the end
        before = model.hf_to_vllm_mapper.map_name("lm_head.weight")
        compat.rename_weights(module, name, re.compile(r"^canary\."), "bird.")
        assert model.hf_to_vllm_mapper.map_name("canary.weight") == "bird.weight", f"{name}: see rename_weights"
        assert model.hf_to_vllm_mapper.map_name("lm_head.weight") == before
