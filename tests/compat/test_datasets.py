"""What vig_ray/compat/datasets.py takes from `datasets` still gives what its own builders read."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from vig_ray.compat.datasets import configs_of, splits_of

CARD = """---
license: mit
configs:
- config_name: b
  data_files:
  - split: train
    path: [two.jsonl, one.jsonl]
  - split: test
    path: "t*.jsonl"
- config_name: a
  data_dir: deep
---
"""


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"a": 1}\n')


def theirs(folder: Path, config: str | None) -> dict[str, list[str]]:
    files = datasets.load_dataset_builder(str(folder), config).config.data_files
    assert files is not None
    return {split: list(dict.fromkeys(each)) for split, each in files.items()}


def test_declared_configs(tmp_path: Path) -> None:
    write(tmp_path, "one.jsonl", "two.jsonl", "three.jsonl", "deep/train/x.jsonl", "deep/val.jsonl", "deep/dev/y.jsonl")
    (tmp_path / "README.md").write_text(CARD)
    configs = configs_of(CARD, None)
    assert list(configs) == ["b", "a"]
    for name, config in configs.items():
        assert splits_of(str(tmp_path), config, [".jsonl"]) == theirs(tmp_path, name)


def test_configs_in_a_file_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "one.jsonl", "two.jsonl")
    text = "configs:\n- config_name: c\n  data_files: one.jsonl\n"
    (tmp_path / ".huggingface.yaml").write_text(text)
    (tmp_path / "README.md").write_text("# No header")
    assert splits_of(str(tmp_path), configs_of("# No header", text)["c"], [".jsonl"]) == theirs(tmp_path, "c")


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00001.jsonl", "data/odd-00000-of-00001.jsonl", "data/x.jsonl"),
        ("train.jsonl", "x/test_1.jsonl", "other.jsonl"),
        ("a/b.jsonl", "a.jsonl"),
    ],
)
def test_splits_by_names(names: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, *names)
    assert splits_of(str(tmp_path), {}, [".jsonl"]) == theirs(tmp_path, None)


def test_what_is_not_declared_well() -> None:
    assert configs_of(None, None) == {}
    assert configs_of("# Text", None) == {}
    for card in (
        "---\nconfigs: x\n---\n",
        "---\nconfigs: [{data_files: x}]\n---\n",
        "---\nconfigs: [{config_name: [}]\n---\n",
    ):
        with pytest.raises(ValueError, match=r"\S"):
            configs_of(card, None)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, "one.jsonl")
    with pytest.raises(ValueError, match=r"name gone\.jsonl, which isn't there"):
        splits_of(str(tmp_path), {"data_files": "gone.jsonl"}, [".jsonl"])
    assert splits_of(str(tmp_path), {"data_files": "gone*.jsonl"}, [".jsonl"]) == {}
    assert splits_of(str(tmp_path), {"data_files": "one.jsonl"}, [".parquet"]) == {}
