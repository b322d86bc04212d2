"""A checkpoint that brings its own code: it is run where the user says so, by every process, and never otherwise."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from serve_app import app
from serve_app.options import AppConfig
from tests.command import call, refused
from tests.end_to_end.conftest import read_scores
from tests.model.brought import CLASSES, Brought, change
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import world
from vig_ray.errors import StageError
from vig_ray.model import checkpoint
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.load import load_formatter, load_model, without_weights
from vig_ray.report.detokenize import load_tokenizer
from vig_ray.stage import read_stage
from vig_ray.training.export import ExportConfig
from vig_ray.training.export import run as export

TOLD = "--trust-remote-code runs it, which lets it do on this machine whatever you can"


@pytest.fixture(autouse=True)
def nobody_is_trusted_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr(checkpoint, "_trusted", set())
    monkeypatch.setattr(builtins, "input", asked)


@pytest.fixture
def brought(tmp_path: Path) -> Brought:
    return Brought(tmp_path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    importing.run(ImportConfig(data=world.write(str(folder / "data"), 12, seed=5), out=str(folder)))
    return folder / "samples"


def words(verb: str, model: Path, samples: Path, out: Path, **options: object) -> list[str]:
    data = "--data" if verb == "score" else "--samples"
    given = {"--model": model, data: samples, "--out": out, **{f"--{k}": value for k, value in options.items()}}
    return [verb, *(str(word) for pair in given.items() for word in pair)]


def test_it_is_refused_by_everything_that_loads(brought: Brought) -> None:
    folder = str(brought.folder)
    for load in (
        lambda: load_formatter(folder),
        lambda: load_model(folder, dtype="float32", device="cpu"),
        lambda: without_weights(folder),
        lambda: app.deployments(AppConfig(model=folder)),
    ):
        with pytest.raises(StageError) as raised:
            load()
        assert str(raised.value).startswith(f"{folder}: ")
        assert str(raised.value).endswith(TOLD)
    load_tokenizer(folder)  # transformers' own, by a checkpoint that has more
    assert not brought.has_run()


@pytest.mark.parametrize("verb", ["score", "train"])
def test_it_is_refused_by_the_commands(verb: str, brought: Brought, samples: Path, tmp_path: Path) -> None:
    assert refused(*words(verb, brought.folder, samples, tmp_path / "out")).endswith(TOLD)
    assert refused("serve", "--model", str(brought.folder)).endswith(TOLD)
    assert not brought.has_run()


def test_nobody_is_asked_where_there_is_a_terminal_or_none(brought: Brought, samples: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "vig_ray.cli", *words("score", brought.folder, samples, tmp_path / "out")]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert done.stderr.strip().endswith(TOLD)
    assert not brought.has_run()


def test_only_a_processor_that_is_brought(brought: Brought) -> None:
    """Model and config are transformers' own."""
    change(brought.folder / "config.json", model_type="llava", auto_map={})
    with pytest.raises(StageError) as raised:
        load_formatter(str(brought.folder))
    assert str(raised.value).endswith(TOLD)
    assert not brought.has_run()
    formatter: Any = load_formatter(str(brought.folder), trust_remote_code=True)
    assert type(formatter.processor).__name__ == "BroughtProcessor"


def test_only_a_model_that_is_brought(brought: Brought) -> None:
    """For a config of transformers' own that no model with images of its own has."""
    change(brought.folder / "config.json", model_type="siglip", auto_map={"AutoModelForImageTextToText": "x.Model"})
    for trusted in (False, True):
        with pytest.raises(StageError) as raised:
            load_formatter(str(brought.folder), trust_remote_code=trusted)
        assert str(raised.value).endswith(TOLD) == (not trusted)
        assert "takes no images" not in str(raised.value)


def test_one_that_is_trusted_trusts_no_other(brought: Brought, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = Brought(tmp_path / "elsewhere")  # a folder of the same name, with the same classes
    load_formatter(str(brought.folder), trust_remote_code=True)
    load_model(str(brought.folder), dtype="float32", device="cpu")
    assert brought.has_run()
    for load in (
        lambda: load_formatter(str(other.folder)),
        lambda: load_model(str(other.folder), dtype="float32", device="cpu"),
        lambda: without_weights(str(other.folder)),
    ):
        with pytest.raises(StageError, match="--trust-remote-code"):
            load()
    assert not other.has_run()


def test_however_its_folder_is_spelled(brought: Brought, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(brought.folder.parent)
    load_formatter(f"./{brought.folder.name}/", trust_remote_code=True)
    load_model(str(brought.folder), dtype="float32", device="cpu")


def test_code_without_such_a_model_is_refused(brought: Brought) -> None:
    brought.brings({"AutoConfig": CLASSES["AutoConfig"], "AutoModelForCausalLM": "modeling_brought.BroughtModel"})
    with pytest.raises(StageError) as raised:
        load_formatter(str(brought.folder), trust_remote_code=True)
    assert str(raised.value) == (
        f"{brought.folder}: its code is for AutoConfig, AutoModelForCausalLM; vig-ray needs an "
        "AutoModelForImageTextToText"
    )


@pytest.mark.parametrize("file", ["configuration", "processing", "modeling"])
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import a_package_that_is_not_here", "a_package_that_is_not_here"),
        ("raise AttributeError('made for another release')", "made for another release"),
        ("this is no Python", "invalid syntax"),
    ],
)
def test_what_it_raises_is_one_line(
    file: str, code: str, told: str, brought: Brought, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(brought.folder)
    load_formatter(folder, trust_remote_code=True)
    (brought.folder / f"{file}_brought.py").write_text(code)
    for name in [name for name in sys.modules if name.startswith("transformers_modules.brought.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(StageError, match=told) as raised:
        load_formatter(folder) if file == "processing" else load_model(folder, dtype="float32", device="cpu")
    assert "\n" not in str(raised.value)


def test_other_code_is_another_model(brought: Brought) -> None:
    untrusted = fingerprint(str(brought.plain))
    load_formatter(str(brought.folder), trust_remote_code=True)
    before = fingerprint(str(brought.folder))
    with open(brought.folder / "modeling_brought.py", "a") as file:
        file.write("# changed")
    assert fingerprint(str(brought.folder)) != before
    (brought.plain / "a_script.py").write_text("")
    assert fingerprint(str(brought.plain)) == untrusted


@pytest.mark.long
def test_scored_by_the_command_it_gives_what_transformers_own_class_gives(
    brought: Brought, samples: Path, tmp_path: Path, local_ray: None
) -> None:
    """Preparers and engine are processes of their own, which get the trust by their arguments."""
    options = {"dtype": "float32", "reference": "blur", "workers": 1, "prepare-workers": 1}
    call(*words("score", brought.plain, samples, tmp_path / "plain", **options))
    assert not brought.has_run()
    call(*words("score", brought.folder, samples, tmp_path / "own", **options), "--trust-remote-code")
    ours, theirs = read_scores(tmp_path / "own"), read_scores(tmp_path / "plain")
    assert [row["error"] for row in ours] == [None] * 12
    assert "modeling_brought" in brought.ran.read_text()
    for own, plain in zip(ours, theirs, strict=True):
        assert own["token_ids"] == plain["token_ids"]
        for name in ("clean_logprobs", "blur_logprobs"):
            assert np.abs(np.subtract(own[name] or [], plain[name] or [])).max(initial=0) < 1e-6


def test_its_numbers_are_transformers_own_classes(brought: Brought) -> None:
    load_formatter(str(brought.folder), trust_remote_code=True)
    ours = load_model(str(brought.folder), dtype="float32", device="cpu")
    theirs = AutoModelForImageTextToText.from_pretrained(brought.plain, dtype=torch.float32).eval()
    assert type(ours).__name__ == "BroughtModel"
    processor = AutoProcessor.from_pretrained(brought.plain)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is red?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert torch.allclose(ours(**inputs).logits, theirs(**inputs).logits, atol=1e-6)


@pytest.mark.long
def test_trained_by_the_command_it_is_written_with_its_code(
    brought: Brought, samples: Path, tmp_path: Path, local_ray: None
) -> None:
    options = {"dtype": "float32", "max-steps": 2, "global-batch": 4, "lr": 1e-3}
    for model, out, more in ((brought.plain, "plain", ()), (brought.folder, "own", ("--trust-remote-code",))):
        call(*words("train", model, samples, tmp_path / out, **options), *more)
    model = tmp_path / "own" / "model"
    record = read_stage(str(tmp_path / "own" / "training"))
    assert record is not None
    assert "checked on a small copy, to " in record["workers"]
    assert {file.name for file in model.glob("*.py")} == {file.name for file in brought.folder.glob("*.py")}
    with pytest.raises(StageError, match="--trust-remote-code"):
        load_formatter(str(model))
    formatter: Any = load_formatter(str(model), trust_remote_code=True)
    assert type(formatter.processor).__name__ == "BroughtProcessor"
    ours = load_model(str(model), dtype="float32", device="cpu")
    theirs = load_model(str(tmp_path / "plain" / "model"), dtype="float32", device="cpu")
    before = load_model(str(brought.plain), dtype="float32", device="cpu").state_dict()
    assert type(ours).__name__ == "BroughtModel"
    moved = 0
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-5), name
        moved += not torch.equal(before[name], tensor)
    assert moved > 20
    exported = tmp_path / "exported"
    checkpoint._trusted.clear()
    with pytest.raises(StageError, match="--trust-remote-code"):  # its record alone trusts nothing
        export(ExportConfig(run=str(tmp_path / "own"), out=str(exported)))
    export(ExportConfig(run=str(tmp_path / "own"), out=str(exported), trust_remote_code=True))
    load_formatter(str(exported), trust_remote_code=True)
    assert type(load_model(str(exported), dtype="float32", device="cpu")).__name__ == "BroughtModel"
