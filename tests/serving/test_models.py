"""Several models and references in one server: each request has the numbers of what it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from serve_app import app
from serve_app.options import AppConfig
from tests.serving.conftest import base64_of, png
from vig_ray import cli
from vig_ray.demo import CHECKPOINT, HARD_CHECKPOINT
from vig_ray.errors import StageError

SAMPLE = {"question": "What is this?", "answer": "Noise of many colors.", "image": base64_of(png(3))}


def test_a_request_names_a_reference(serving: Callable[..., Any]) -> None:
    client, _ = serving(reference="blur,blind")
    blur, blind, default = (
        client.post("/v1/score", json=SAMPLE | named).json()
        for named in ({"reference": "blur"}, {"reference": "blind"}, {})
    )
    assert [each["reference"]["name"] for each in (blur, blind, default)] == ["blur", "blind", "blur"]
    assert blur["clean_loss"] == pytest.approx(blind["clean_loss"], abs=1e-6)
    assert abs(blur["reference_loss"] - blind["reference_loss"]) > 1e-3
    assert blur["reference"]["kernels"]
    assert not blind["reference"]["kernels"]
    only_blind, _ = serving(reference="blind")
    alone = only_blind.post("/v1/score", json=SAMPLE).json()
    assert alone["vig"] == pytest.approx(blind["vig"], abs=1e-6)
    form = client.post(
        "/v1/score", files={"image": png(3)},
        data={"question": SAMPLE["question"], "answer": SAMPLE["answer"], "reference": "blind"},
    )  # fmt: skip
    assert form.json()["vig"] == pytest.approx(blind["vig"], abs=1e-6)
    items = [SAMPLE | {"reference": name} for name in ("blind", "mean", "blur")]
    found = client.post("/v1/score/batch", json={"items": items}).json()["results"]
    assert found[0]["result"]["vig"] == pytest.approx(blind["vig"], abs=1e-6)
    assert found[1]["error"] == {"kind": "Invalid", "message": "reference: this server has blur, blind"}
    assert found[2]["result"]["vig"] == pytest.approx(blur["vig"], abs=1e-6)
    line = client.post("/v1/score/stream", content=json.dumps(items[0]), headers={"content-type": "application/jsonl"})
    assert json.loads(line.text.splitlines()[0])["result"]["vig"] == pytest.approx(blind["vig"], abs=1e-6)


def test_what_there_is_is_told(serving: Callable[..., Any]) -> None:
    client, _ = serving(model=f"demo={CHECKPOINT}", reference="blur,blind")
    told = client.get("/v1/model").json()
    assert told["models"] == [{"name": "demo", "references": ["blur", "blind"]}]
    assert told["reference"] == "blur"
    blind = client.get("/v1/model", params={"model": "demo", "reference": "blind"}).json()
    assert (blind["name"], blind["reference"], blind["reference_parameters"]) == ("demo", "blind", {})
    assert client.get("/v1/model", params={"reference": "mean"}).json()["error"]["kind"] == "Invalid"
    wrong = client.post("/v1/score", json=SAMPLE | {"model": "<b>other</b>"})
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (422, "model: this server has demo")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ([f"a={CHECKPOINT}", f"a={HARD_CHECKPOINT}"], "two models have the name a"),
        ([CHECKPOINT, CHECKPOINT], "two models have the name checkpoint"),
        (["a="], "names no folder behind the ="),
        ([], "takes a checkpoint's folder"),
    ],
)
def test_models_that_cannot_be_told_apart(model: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AppConfig(model=model)


def test_models_are_given_as_the_command_line_and_yaml_have_them() -> None:
    assert AppConfig(model=CHECKPOINT).models == {"checkpoint": CHECKPOINT}
    assert AppConfig(model="org/model").models == {"org/model": "org/model"}
    pair = {"one": CHECKPOINT, "two": "org/model=x"}
    assert AppConfig(model=pair).models == pair
    assert AppConfig(model=[f"one={CHECKPOINT}", "two=org/model=x"]).models == pair


def test_several_models_have_scorers_of_their_own_or_take_turns() -> None:
    pair = {"one": CHECKPOINT, "two": HARD_CHECKPOINT}
    scorers, *_ = app.deployments(AppConfig(model=pair, device="cpu"))
    assert [each._bound_deployment.name for each in scorers.values()] == ["Scorer", "Scorer-1"]
    scorers, *_ = app.deployments(AppConfig(model=pair, device="cpu", models_a_worker=1))
    assert scorers["one"] is scorers["two"]
    with pytest.raises(StageError, match="--workers 2: 4 engines take 4 GPUs, and this machine has 3"):
        app.deployments(AppConfig(model=pair, device="cuda", engine="torch", workers="2"), gpus_here=3)
    turns = AppConfig(model=pair, device="cuda", engine="torch", workers="2", models_a_worker=2)
    app.deployments(turns, gpus_here=2)


def test_wrong_values_are_told_as_they_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*words: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["serve", "--model", CHECKPOINT, *words])
        return capsys.readouterr().err.strip()

    assert refusal("--reference", "blur,text").startswith(
        "vig: --reference 'blur', 'text': text is the loss of a second"
    )
    assert refusal("--model", CHECKPOINT).startswith(
        f"vig: --model {CHECKPOINT!r}, {CHECKPOINT!r}: two models have the"
    )
