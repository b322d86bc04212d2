"""Where a checkpoint lies, whether it is whole, and the fingerprint that tells it from others.

Everything here reads configs and headers only, so that a model that isn't there is told within seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from vig_ray.errors import StageError
from vig_ray.storage import one_line

_trusted: set[str] = set()
_CONFIG_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_SAMPLE_BYTES = 1 << 16


def is_local(model: str) -> bool:
    """Whether `model` names a folder of this machine rather than a repository on the hub."""
    return os.path.isdir(os.path.expanduser(model))


def trust(model: str) -> None:
    """Let this process run the code that comes with checkpoint `model`, a folder or a hub id: it can do whatever the
    user can. Nothing else is trusted by it."""
    _trusted.add(_spelled(model))


def trusted(model: str) -> bool:
    """Whether the code that comes with checkpoint `model` may be run here."""
    return _spelled(model) in _trusted


def _spelled(model: str) -> str:
    return os.path.abspath(os.path.expanduser(model)) if is_local(model) else model


def local_folder(model: str, *, weights: bool, option: str = "--model") -> str:
    """The folder that holds checkpoint `model`, downloaded from the hub where it isn't local.

    Raises StageError naming the model where it is neither a folder with a config.json nor a hub id that answers.
    """
    if is_local(model):
        folder = os.path.abspath(os.path.expanduser(model))
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise StageError(f"{model}: no config.json in this folder; {option} takes a transformers checkpoint")
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise StageError(f"{model}: no such folder; {option} takes a checkpoint's folder or a hub id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        wanted = _CONFIG_FILES + (_weight_patterns(model) if weights else [])
        code = ["*.py"] if trusted(model) else []
        folder = str(snapshot_download(model, allow_patterns=[*wanted, *code]))
        if code:
            trust(folder)
        return folder
    except GatedRepoError as error:
        raise StageError(
            f"{model}: the hub gives it to those who have accepted its terms there and are logged in (`hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise StageError(
            f"{model}: no such folder here, and on the hub no such model, or a private one (`hf auth login`)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise StageError(
            f"{model}: no such folder here; the hub can't be reached, and its cache on this machine hasn't got it"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StageError(f"{model}: no such folder here, and the hub gave: {one_line(error)[:200]}") from error


def _weight_patterns(model: str) -> list[str]:
    """safetensors where the repository has them, else PyTorch's own files (Vicuna and CLIP have only those)."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        names = list_repo_files(model)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return ["*.safetensors", "*.bin"]  # what an earlier download left in the cache
    return ["*.safetensors"] if any(name.endswith(".safetensors") for name in names) else ["*.bin"]


def read_config(folder: str) -> Any:
    """The checkpoint's config; raises StageError where it is broken or not an image-text-to-text model."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    config, brought = _any_config(folder)
    if "AutoModelForImageTextToText" in brought and trusted(folder):
        return config
    if type(config).__module__.startswith("transformers_modules."):
        raise StageError(
            f"{folder}: its code is for {', '.join(sorted(brought))}; vig-ray needs an AutoModelForImageTextToText"
        )
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        if "AutoModelForImageTextToText" in brought:
            raise StageError(_untrusted(folder))
        raise StageError(
            f"{folder}: a {config.model_type!r} model takes no images; --model needs a vision-language one"
        )
    return config


def read_text_config(folder: str, *, option: str = "--reference-model") -> Any:
    """The config of a language model; raises StageError where it is broken, takes images or is no causal model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    config, brought = _any_config(folder)
    if "AutoModelForCausalLM" in brought and trusted(folder):
        return config
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise StageError(f"{folder}: a {config.model_type!r} model takes images; {option} needs a language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if "AutoModelForCausalLM" in brought:
            raise StageError(_untrusted(folder))
        raise StageError(
            f"{folder}: a {config.model_type!r} model is no causal language model (AutoModelForCausalLM), which "
            f"{option} needs"
        )
    return config


def config_of(folder: str) -> Any:
    """The checkpoint's config, of whatever kind of model. Raises StageError where it is broken."""
    return _any_config(folder)[0]


def _any_config(folder: str) -> tuple[Any, dict[str, Any]]:
    """A config, and which classes the checkpoint's own code is for."""
    from transformers import AutoConfig

    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            brought = json.load(file).get("auto_map") or {}
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted(folder)), brought
    except Exception as error:  # code that comes with a model raises whatever its author wrote
        raise unusable(folder, "config.json: can't be read", error) from error


def unusable(model: str, what: str, error: Exception) -> StageError:
    """That checkpoint `model` can't be used, and why: `what` and its cause, or that its code isn't trusted."""
    if "trust_remote_code" in str(error) and not trusted(model):
        return StageError(_untrusted(model))
    return StageError(f"{model}: {what}: {one_line(error)[:300]}")


def _untrusted(model: str) -> str:
    return (
        f"{model}: this model is code that comes with it; --trust-remote-code runs it, which lets it do on this "
        "machine whatever you can"
    )


def code_of(folder: str) -> dict[str, str]:
    """A hash of each file of code that comes with a checkpoint and is run here; {} where none is."""
    if not trusted(folder):
        return {}
    hashes = {}
    for path in sorted(Path(folder).rglob("*.py")):
        hashes[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def fingerprint(model: str) -> str:
    """A hash of checkpoint `model`, 16 hex digits: another model, or the same one trained on, has another.

    A repository's is its commit. A folder's covers config.json, its code where that is run and, of each tensor, its
    name, type, shape and first 64 KiB: training moves all of a tensor, and reading that much takes a second where the
    whole takes a minute.
    Raises StageError where the folder's weights are missing or broken.
    """
    digest = hashlib.sha256()
    folder = local_folder(model, weights=False)
    if not is_local(model):
        digest.update(f"{model}@{os.path.basename(folder)}".encode())
        return digest.hexdigest()[:16]
    with open(os.path.join(folder, "config.json"), "rb") as file:
        digest.update(file.read())
    if code := code_of(folder):
        digest.update(json.dumps(code).encode())
    for name in _weight_files(model, folder):
        digest.update(name.encode())
        path = os.path.join(folder, name)
        if name.endswith(".safetensors"):
            _add_safetensors(digest, path)
        else:
            with open(path, "rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _weight_files(model: str, folder: str) -> list[str]:
    """The names of a folder's weight files; raises StageError where there are none, or an index names absent ones."""
    for suffix in (".safetensors", ".bin"):
        indexes = [name for name in os.listdir(folder) if name.endswith(f"{suffix}.index.json")]
        present = sorted(name for name in os.listdir(folder) if name.endswith(suffix))
        if indexes:
            with open(os.path.join(folder, indexes[0])) as file:
                named = sorted(set(json.load(file)["weight_map"].values()))
            absent = [name for name in named if name not in present]
            if absent:
                raise StageError(f"{model}: {indexes[0]} names {absent[0]}, which isn't there; download it again")
            return named
        if present:
            return present
    raise StageError(f"{model}: no weights (*.safetensors or *.bin) in this folder")


def _add_safetensors(digest: Any, path: str) -> None:
    """Add a file's header and the beginning of each of its tensors to a hash."""
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, tensor in sorted(header.items()):
                start, end = tensor["data_offsets"]
                if 8 + length + end > size:
                    raise ValueError("it ends before its last tensor")
                digest.update(f"{name}:{tensor['dtype']}:{tensor['shape']}".encode())
                file.seek(8 + length + start)
                digest.update(file.read(min(end - start, _SAMPLE_BYTES)))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        # A Git LFS pointer, a cut-off download, another format by that name.
        raise StageError(f"{path}: not a whole safetensors file ({one_line(error)}); download it again") from error
