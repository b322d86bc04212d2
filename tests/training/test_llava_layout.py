"""`vig export --format llava` against a reader that keeps to the conventions of LLaVA's code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from tests.model.llava_parts import config_of, write_parts
from tests.model.llava_rules import IMAGE, prompt
from tests.training.llava_layout import LlavaFolder, read
from tests.training.runs import alone, left_by, setup_of, weights_of
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model import assemble, assembled_parts
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.training import export
from vig_ray.training.export import ExportConfig
from vig_ray.training.llava_layout import write_llava
from vig_ray.training.run import Run
from vig_ray.training.training_model import TRAINED

Talk = list[tuple[str, str]]
ROLES = {"human": "user", "gpt": "assistant"}
TALKS: list[tuple[Talk, tuple[int, int] | None]] = [
    ([("human", "<image>\nWhat is this?"), ("gpt", "A red dog in a garden.")], (40, 30)),
    ([("human", "<image>"), ("gpt", "12 cats, été 狗 😀"), ("human", "two  spaces?"), ("gpt", " a\n\n  x")], (28, 28)),
    ([("human", "What\n<image>"), ("gpt", "if (x == 3):\n        x"), ("human", "USER"), ("gpt", "USER")], (90, 37)),
    ([("human", "no image here"), ("gpt", "The street is wet.")], None),
]  # fmt: skip
# What sets one base apart from the plain one.
BASES: dict[str, dict[str, Any]] = {
    "a stretched rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 20000.0, "factor": 4.0}},
    "padded rows": {"rows": 1064},
    "tied embeddings": {"tie_word_embeddings": True},
    "a legacy tokenizer": {},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts, and what `vig assemble` makes of them in base/; with another rope_theta than the default."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assemble.run(config_of(folder, folder / "base"))
    return folder


def _change(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@dataclass(frozen=True)
class Base:
    """A base, its model with other weights, and the folder in LLaVA's layout that holds these."""

    folder: Path
    model: Any
    written: LlavaFolder


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    write_parts(folder, **BASES[request.param])
    if request.param == "a legacy tokenizer":
        settings = json.loads((folder / "vicuna/tokenizer_config.json").read_text())
        (folder / "vicuna/tokenizer_config.json").write_text(json.dumps(settings | {"legacy": True}))
    assemble.run(config_of(folder, folder / "base"))
    model = load_model(str(folder / "base"), dtype="float32", device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision_tower" not in name:
                parameter.mul_(1.1)
    write_llava(model.state_dict(), str(folder / "base"), str(folder / "llava"), "float32", TRAINED)
    return Base(folder / "base", model, read(folder / "llava"))


def pictures() -> list[Image.Image | None]:
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)) if size else None
        for _, size in TALKS
    ]


def prompt_of(formatter: Any, talk: Talk, picture: Image.Image | None) -> Prompt:
    images = [PromptImage("p", lambda: np.array(picture), formatter.preprocess)] if picture else []
    return formatter.prompt([Turn(ROLES[role], text) for role, text in talk], images)


def agrees(folder: LlavaFolder, model: Any, formatter: Any) -> None:
    """The folder gives the ids and log-probs that the engine gives with `model`, cut to LLaVA's rows."""
    rows = folder.config["vocab_size"]
    for (talk, _), picture in zip(TALKS, pictures(), strict=True):
        made = prompt_of(formatter, talk, picture)
        ids, theirs = folder.logprobs(prompt(talk, image=picture is not None), picture)
        assert [formatter.image_token_id if token == IMAGE else token for token in ids] == made.token_ids.tolist()
        if model.get_output_embeddings().weight.shape[0] == rows:
            ours = np.asarray(TorchEngine(model, formatter.collate).logprobs([made])[0])
        else:
            images = [image.inputs for image in made.images]
            inputs = formatter.collate(images, "cpu", torch.float32) if images else {}
            token_ids = torch.from_numpy(made.token_ids).long()
            with torch.no_grad():
                logits = model(input_ids=token_ids[None], **inputs).logits[0, :, :rows].log_softmax(-1)
            places = torch.from_numpy(made.answer_positions).long()
            ours = logits[places - 1, token_ids[places]].numpy()
        np.testing.assert_allclose(theirs[made.answer_positions], ours, rtol=0, atol=2e-5)
        assert ours.std() > 0.3  # not all tokens alike


def test_llavas_code_gets_the_model_that_was_trained(base: Base) -> None:
    agrees(base.written, base.model, load_formatter(str(base.folder)))


def test_the_image_matters_there(base: Base) -> None:
    talk, _ = TALKS[0]
    text = prompt(talk, image=True)
    first, second = (base.written.logprobs(text, pictures()[index])[1] for index in (0, 2))
    assert np.nanmax(np.abs(first - second)) > 0.1


@pytest.fixture(scope="module")
def trained(chosen: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("trained")
    base = shutil.copytree(parts / "base", folder / "base")
    setup = setup_of(chosen, selection=False, model=str(base), max_steps=2, lora=True, lora_rank=4, lr=1e-2)
    return (run := alone(setup, folder / "training" / "checkpoints")), left_by(run, folder)


def test_a_run_is_exported_for_llavas_code(trained: tuple[Run, Path], tmp_path: Path) -> None:
    run, folder = trained
    export.run(ExportConfig(run=str(folder), out=str(tmp_path / "out"), format="llava"))
    written = read(tmp_path / "out")
    model = load_model(str(folder / "model"), dtype="float32", device="cpu")
    agrees(written, model, load_formatter(str(folder / "base")))
    before = load_file(folder / "base" / "model.safetensors")["multi_modal_projector.linear_1.weight"]
    assert not torch.equal(written.projector[0].weight, before)
    assert torch.equal(written.projector[0].weight, weights_of(run)["model.multi_modal_projector.linear_1.weight"])
    assert written.config["mm_vision_tower"] == str(tmp_path / "out" / "vision_tower")


def test_the_hubs_layout_of_it_is_transformers_own(trained: tuple[Run, Path], tmp_path: Path) -> None:
    """Model, processor and template by transformers alone give the log-probs that the engine gives."""
    _, folder = trained
    export.run(ExportConfig(run=str(folder), out=str(tmp_path / "out")))
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    images = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")  # as LLaVA does
    formatter = load_formatter(str(folder / "base"))
    engine = TorchEngine(load_model(str(folder / "model"), dtype="float32", device="cpu"), formatter.collate)
    (talk, _), picture = TALKS[0], pictures()[0]
    made = prompt_of(formatter, talk, picture)
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red dog in a garden."}]},
    ]
    ids = processor(text=processor.apply_chat_template(turns), images=picture)["input_ids"][0]
    # LLaVA tokenises what follows the image by itself, so that it begins with a space.
    after = int(np.flatnonzero(made.image_mask)[-1]) + 1
    assert formatter.tokenizer.convert_ids_to_tokens(int(made.token_ids[after])) == "▁"
    assert list(ids) == np.delete(made.token_ids, after).tolist()
    token_ids = torch.from_numpy(made.token_ids).long()
    with torch.no_grad():
        logits = model(input_ids=token_ids[None], **images(images=picture, return_tensors="pt")).logits[0]
    places = torch.from_numpy(made.answer_positions).long()
    theirs = logits.log_softmax(-1)[places - 1, token_ids[places]]
    np.testing.assert_allclose(theirs, np.asarray(engine.logprobs([made])[0]), rtol=0, atol=2e-5)


def test_a_clip_of_the_hub_goes_by_its_name(parts: Path, tmp_path: Path) -> None:
    """Its weights aren't written then: LLaVA's code would say that it doesn't use them."""
    base = shutil.copytree(parts / "base", tmp_path / "base")
    state = load_model(str(base), dtype="float32", device="cpu").state_dict()
    config = json.loads((base / "config.json").read_text())
    assert "mm_vision_tower" not in config  # put together from a folder of this machine
    for name, taken in {"openai/clip-vit-large-patch14-336": True, "somebody/clip": False}.items():
        (base / "config.json").write_text(json.dumps(config | {"mm_vision_tower": name}))
        out = tmp_path / name.replace("/", "-")
        write_llava(state, str(base), str(out), "float32", TRAINED, place="/elsewhere/model")
        assert (out / "vision_tower").exists() != taken
        named = json.loads((out / "config.json").read_text())["mm_vision_tower"]
        assert named == (name if taken else "/elsewhere/model/vision_tower")
        assert not any("vision_tower" in tensor for tensor in load_file(out / "model.safetensors"))


def test_a_tower_that_was_trained_is_no_clip_of_the_hub(chosen: Path, parts: Path, tmp_path: Path) -> None:
    """Nor is it one to the next run, which starts from the model that is written."""
    base = shutil.copytree(parts / "base", tmp_path / "base")
    _change(base / "config.json", lambda all_: all_.update(mm_vision_tower="openai/clip-vit-large-patch14-336"))
    setup = setup_of(chosen, selection=False, model=str(base), max_steps=2, train=("projector", "tower"), tower_lr=1e-2)
    folder = left_by(alone(setup, tmp_path / "run" / "training" / "checkpoints"), tmp_path / "run")
    assert "mm_vision_tower" not in json.loads((folder / "model" / "config.json").read_text())
    export.run(ExportConfig(run=str(folder), out=str(tmp_path / "out"), format="llava"))
    written = read(tmp_path / "out")
    model = load_model(str(folder / "model"), dtype="float32", device="cpu")
    agrees(written, model, load_formatter(str(folder / "model")))
    before = load_model(str(base), dtype="float32", device="cpu").model.vision_tower.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in written.tower.state_dict().items())


def test_a_written_model_is_a_base_again(trained: tuple[Run, Path], tmp_path: Path) -> None:
    _, folder = trained
    model = load_model(str(folder / "model"), dtype="float32", device="cpu")
    write_llava(model.state_dict(), str(folder / "model"), str(tmp_path / "out"), "float32", TRAINED)
    agrees(read(tmp_path / "out"), model, load_formatter(str(folder / "model")))


def test_assemble_notes_a_clip_of_the_hub(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = assembled_parts.local_folder
    monkeypatch.setattr(
        assembled_parts,
        "local_folder",
        lambda model, **options: str(parts / "clip") if model == "openai/clip" else plain(model, **options),
    )
    assemble.run(config_of(parts, tmp_path / "base", vision_tower="openai/clip"))
    assert json.loads((tmp_path / "base" / "config.json").read_text())["mm_vision_tower"] == "openai/clip"


def test_half_precision(parts: Path, tmp_path: Path) -> None:
    base = shutil.copytree(parts / "base", tmp_path / "base")
    state = load_model(str(base), dtype="float32", device="cpu").state_dict()
    write_llava(state, str(base), str(tmp_path / "out"), "float16", TRAINED)
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float16"
    for folder in ("out", "out/vision_tower"):
        kinds = {tensor.dtype for tensor in load_file(tmp_path / folder / "model.safetensors").values()}
        assert kinds == {torch.float16}


def test_what_llavas_code_cannot_hold_is_one_line(
    trained: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before any weights are read."""
    _, folder = trained
    monkeypatch.setattr(export, "load_model", None)
    base = folder / "base"
    kept = shutil.copytree(base, tmp_path / "kept")

    def refused(told: str) -> None:
        with pytest.raises(StageError, match=told):
            export.run(ExportConfig(run=str(folder), out=str(tmp_path / "out"), format="llava"))
        assert not (tmp_path / "out").exists()
        shutil.copytree(kept, base, dirs_exist_ok=True)

    config = base / "config.json"
    _change(config, lambda all_: all_["text_config"].update(head_dim=24))
    refused("LLaVA's code knows no heads of a width of 24")
    _change(config, lambda all_: all_.update(vision_feature_layer=[-2, -3]))
    refused("LLaVA's code knows no features of several layers")
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4}
    _change(config, lambda all_: all_["text_config"].update(rope_parameters=rope))
    refused("no rotary embedding of type 'yarn'")
    _change(config, lambda all_: all_["text_config"].update(vocab_size=999))
    refused(r"1000 pieces in its tokenizer\.model, but its embeddings have 999 rows")
    (base / "tokenizer.model").unlink()
    refused(r"no tokenizer\.model.*put the language model's into this folder")
    (base / "tokenizer.model").write_text("not a model")
    refused("not a SentencePiece model")
    tokens = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["▁the"], vocabulary["▁of"] = vocabulary["▁of"], vocabulary["▁the"]
    (base / "tokenizer.json").write_text(json.dumps(tokens))
    refused(r"its tokenizer\.model isn't its tokenizer's, where token")


def test_another_model_has_no_such_layout(qwen_checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'qwen2_5_vl' model has no LLaVA layout"):
        write_llava({}, qwen_checkpoint, str(tmp_path), "float32", TRAINED)
    with pytest.raises(StageError, match=r"no tokenizer\.model"):
        write_llava({}, CHECKPOINT, str(tmp_path), "float32", TRAINED)
