"""Scores and a selection in a dataset repository: what `datasets` and `huggingface_hub` read there."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, HfApi, snapshot_download

from tests.command import call, refused
from tests.hub import Hub
from tests.hub_writing import Writing
from tests.selection.made import SCHEMA, made_up, write
from vig_ray.push import shards as shards_module
from vig_ray.push.paths import without_paths
from vig_ray.selection import job as select
from vig_ray.selection.config import SelectConfig

TO = "org/vig-of-made"
ROWS = 300


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Scores of 300 samples in four files, one with an error that names a path of this machine, and a selection."""
    rows = made_up(ROWS, seed=3)
    failed = next(row for row in rows if row["error"])
    failed["error"] = f"FileNotFoundError: No such file ({tmp_path}/my images/000001.png); s3://secret-bucket/a/b.png"
    for row in rows:
        row["kept"] = [{"name": "caption", "value": '"a text of the dataset"'}]
    out = tmp_path / "runs" / "made"
    write(out, rows, files=4)
    record = json.loads((out / "scores.stage.json").read_text())
    record["config"] |= {
        "model": str(tmp_path / "models" / "aligned"),
        "data": str(tmp_path / "my images" / "data.json"),
    }
    record["identity"]["samples"] = {
        "name": "made", "format": "json", "images": str(tmp_path / "my images"), "counts": {"read": ROWS},
        "inputs": [{"path": str(tmp_path / "my images" / "data.json"), "size": 3, "mtime_ns": 4}],
    }  # fmt: skip
    (out / "scores.stage.json").write_text(json.dumps(record))
    select.run(SelectConfig(scores=str(out), out=str(out), p=60))
    return out


def stored(run: Path, name: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((run / name).glob("*.parquet"))])


def push(run: Path, *words: str) -> str:
    return call("push", str(run), "--to", TO, "--yes", *words).stdout


def by_key(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["sample_key"]: row for row in rows}


def test_datasets_loads_the_rows_that_lie_here(run: Path, server: Hub) -> None:
    printed = push(run)
    assert f"{server.url}/datasets/{TO}" in printed
    for name in ("scores", "selection"):
        loaded = datasets.load_dataset(TO, name, split="train", token=server.token)
        ours = by_key(stored(run, name).to_pylist())
        theirs = by_key(loaded.to_list())
        assert ours.keys() == theirs.keys()
        assert loaded.column_names == [column for column in stored(run, name).column_names if column != "kept"]
        for key, row in ours.items():
            if row.get("error") and "my images" in row["error"]:
                assert theirs[key]["error"] == "FileNotFoundError: No such file (000001.png); b.png"
                row["error"] = theirs[key]["error"]
            assert row.pop("kept")  # a text of the dataset: not uploaded
            assert theirs[key] == row
    assert datasets.get_dataset_config_names(TO, token=server.token) == ["scores", "selection"]


def test_what_was_sent_comes_back_byte_for_byte(run: Path, server: Hub, tmp_path: Path) -> None:
    push(run)
    folder = Path(snapshot_download(TO, repo_type="dataset", token=server.token))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"README.md", "vig-ray.json", "scores/00000.parquet", "selection/00000.parquet", ".gitattributes"}
    assert names == expected
    for name in names:
        assert (folder / name).read_bytes() == server.read(TO, name)
    for part in (*shards_module.shards(str(run / "scores"), "scores", [str(tmp_path / "my images")]),):
        again = Path(part.at(str(tmp_path / "again.parquet")))
        assert pq.read_table(again).equals(pq.read_table(folder / part.name))


def test_the_card_is_filled_from_the_records(run: Path, server: Hub) -> None:
    push(run, "--license", "cc-by-4.0", "--base-model", "org/aligned-7b")
    card = DatasetCard.load(TO, token=server.token)
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["size_categories"] == ["n<1K"]
    assert [each["config_name"] for each in data["configs"]] == ["scores", "selection"]
    rows = [row for row in stored(run, "scores").to_pylist() if row["vig"] is not None]
    gains = np.array([row["vig"] for row in rows])
    kept = json.loads((run / "selection.stage.json").read_text())["selection"]["kept"][0]
    for told in (
        f"{ROWS:,} = {len(rows):,} scored",
        f"{sum(row['num_answer_tokens'] for row in rows):,} answer tokens scored",
        f"| mean VIG | {gains.mean():+.3f} nats",
        f"| redundant (VIG within ±0.05) | {100 * (np.abs(gains) <= 0.05).mean():.1f} %",
        f"| misaligned (VIG below −0.05) | {100 * (gains < -0.05).mean():.1f} %",
        "[org/aligned-7b](https://huggingface.co/org/aligned-7b)",
        "| share kept | 60 % |",
        f"{kept['total']['scored']:,} of {len(rows):,}",
        f"{next(iter(kept['thresholds'].values())):+.4f}",
        f'load_dataset("{TO}", "scores", split="train")',
        "`cc-by-4.0`, as whoever pushed this stated",
    ):
        assert told in card.text, told


def test_without_a_licence_the_card_asks_for_one(run: Path, server: Hub) -> None:
    push(run)
    card = DatasetCard.load(TO, token=server.token)
    assert card.data.license == "other"
    assert "To be confirmed by whoever pushed this" in card.text


def test_nothing_says_where_things_lie_here(run: Path, server: Hub, tmp_path: Path) -> None:
    push(run)
    for name in HfApi().list_repo_files(TO, repo_type="dataset", token=server.token):
        content = server.read(TO, name)
        if name.endswith(".parquet"):
            content = json.dumps(pq.read_table(pa.BufferReader(content)).to_pylist()).encode()
        for secret in (str(tmp_path), "a text of the dataset", "my images", "secret-bucket", os.path.expanduser("~/")):
            assert secret.encode() not in content, name


def test_a_new_repository_is_private_unless_it_is_said(run: Path, server: Hub) -> None:
    push(run)
    assert server.repositories["datasets", TO].private
    call("push", str(run), "--to", "org/open", "--yes", "--public")
    assert not server.repositories["datasets", "org/open"].private


def test_again_sends_only_what_changed(run: Path, writing: Writing, server: Hub, tmp_path: Path) -> None:
    push(run)
    first, uploads = server.repositories["datasets", TO].branches["main"], len(writing.uploaded)
    assert "nothing had changed" in push(run)
    assert server.repositories["datasets", TO].branches["main"] == first
    assert len(writing.uploaded) == uploads == 2
    select.run(SelectConfig(scores=str(run), out=str(run), p=30, overwrite=True))
    push(run)
    assert len(writing.uploaded) == 3
    changed = {operation["value"]["path"] for operation in writing.commits[-1][1:]}
    assert changed == {"README.md", "vig-ray.json", "selection/00000.parquet"}
    shutil.rmtree(run / "selection")
    (run / "selection.stage.json").unlink()
    assert "1 deleted" in push(run)
    assert "selection/00000.parquet" not in HfApi().list_repo_files(TO, repo_type="dataset", token=server.token)


def test_many_rows_become_shards_that_hold_each_row_once(
    run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_LEAST_ROWS", 7)
    monkeypatch.setattr(shards_module, "_BYTES", 4000)
    monkeypatch.setattr(shards_module, "_BATCH_BYTES", 900)
    push(run)
    names = [name for name in HfApi().list_repo_files(TO, repo_type="dataset", token=server.token) if "scores/" in name]
    assert len(names) == 10
    loaded = datasets.load_dataset(TO, "scores", split="train", token=server.token)
    assert loaded["sample_key"] == stored(run, "scores")["sample_key"].to_pylist()
    assert loaded["clean_logprobs"] == stored(run, "scores")["clean_logprobs"].to_pylist()


def test_a_card_that_was_edited_there_stays(run: Path, server: Hub) -> None:
    push(run)
    mine = server.read(TO, "README.md").decode().replace("license: other", "license: mit")
    server.commit(TO, {"README.md": mine, "mine.txt": "mine"})
    select.run(SelectConfig(scores=str(run), out=str(run), p=30, overwrite=True))
    done = call("push", str(run), "--to", TO, "--yes")
    assert "its card was edited on the hub and is left as it is" in done.stderr
    assert server.read(TO, "README.md").decode() == mine
    push(run)  # nor does it forget that
    assert server.read(TO, "README.md").decode() == mine
    push(run, "--overwrite")
    assert "license: other" in server.read(TO, "README.md").decode()
    assert server.read(TO, "mine.txt") == b"mine"


def test_others_files_are_not_written_over(run: Path, server: Hub) -> None:
    server.commit(TO, {"README.md": "theirs", "data.parquet": b"x"})
    assert "is there already, and `vig push` didn't write it (2 files" in refused("push", str(run), "--to", TO, "--yes")
    assert server.read(TO, "README.md") == b"theirs"
    push(run, "--overwrite")
    assert server.read(TO, "data.parquet") == b"x"


def test_a_dry_run_shows_files_and_card_and_asks_nothing(run: Path, server: Hub) -> None:
    printed = call("push", str(run), "--to", TO, "--dry-run", HF_TOKEN="").stdout
    assert "scores/00000.parquet" in printed
    assert "300 rows" in printed
    assert "# Visual information gain of made" in printed
    assert server.asked == []


def test_nobody_is_asked_where_there_is_no_terminal(run: Path, server: Hub) -> None:
    assert "--yes: needed where nobody can be asked" in refused("push", str(run), "--to", TO)
    assert server.repositories == {}


@pytest.mark.parametrize(("answer", "made"), [("y\n", True), ("no\n", False), ("", False)])
def test_a_person_is_asked(answer: str, made: bool, run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.setattr("sys.stdin", Terminal())
    done = call("push", str(run), "--to", TO)
    assert f"upload these to the dataset repository {TO}, a new private one? [y/N]" in done.stderr
    assert bool(server.repositories) == made
    assert made or "nothing was uploaded" in done.stdout


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        ([], {"HF_TOKEN": ""}, "no token of the hub on this machine: `hf auth login`"),
        ([], {"HF_TOKEN": "hf_wrong"}, "doesn't take this token"),
        (["--to", "others/name"], {}, "may not write to others's repositories"),
        (["--to", "name"], {}, "needs the user or organisation as well, as ORG/NAME"),
        (["--to", "org/na me"], {}, "--to org/na me: Repo id must use alphanumeric"),
        (["--license", "my own!"], {}, "--license 'my own!': takes the hub's name of a licence"),
        (["--what", "model"], {}, "no scores/ and no model/ here"),
        (["--selection", "nowhere"], {}, "nowhere: no selection here"),
    ],
)
def test_what_goes_wrong_is_one_line(
    words: list[str], environment: dict[str, str], told: str, run: Path, server: Hub
) -> None:
    line = ["push", str(run), *([] if "--to" in words else ["--to", TO]), "--yes", *words]
    assert told in refused(*line, **environment)
    assert server.repositories == {}


def test_a_strangers_token_and_a_taken_name_are_one_line(run: Path, server: Hub) -> None:
    server.commit(TO, {"a": "b"}, private=True)
    line = refused("push", str(run), "--to", TO, "--yes", HF_TOKEN=server.strangers_token)
    assert "may not write to org's repositories" in line


def test_offline_and_no_hub_are_one_line(run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in refused("push", str(run), "--to", TO, "--yes")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub at http://127.0.0.1:9 can't be reached" in refused("push", str(run), "--to", TO, "--yes")


def test_scores_that_arent_finished_are_not_pushed(run: Path) -> None:
    record = run / "scores.stage.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    assert "not finished" in refused("push", str(run), "--to", TO, "--dry-run")


def test_scores_without_any_score_have_a_card(tmp_path: Path) -> None:
    rows = [{**dict.fromkeys(SCHEMA.names), "sample_key": "made/0", "error": "FileNotFoundError: gone"}]
    identity = {"samples": {"name": "made", "format": "json", "inputs": []}, "model": "m" * 16, "template": "t" * 16}
    out = write(tmp_path / "run", rows, identity=identity)
    assert "No sample has a score." in call("push", out, "--to", TO, "--dry-run").stdout


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("FileNotFoundError: No such file (/data/llava/coco/1.jpg)", "FileNotFoundError: No such file (1.jpg)"),
        ("/data/x/ lies outside the folder /home/me/images; pass", "x lies outside the folder images; pass"),
        ("s3://bucket/a/b.jpg and https://host/a/b.jpg, hf://o/n/c", "b.jpg and https://host/a/b.jpg, hf://o/n/c"),
        ("'~/x/y' \"C:\\Users\\me\\z.png\" =/a/b", "'y' \"z.png\" =b"),
        ("and/or </s> 3 / 4 a/b", "and/or </s> 3 / 4 a/b"),
        ("Image:/home/ann/x.jpg file:/home/ann/x file:///home/ann/y", "Image:x.jpg x y"),
        ("'/home/ann/my pictures/x y.jpg' is \"/home/ann's/b c\"", "'x y.jpg' is \"b c\""),
        ("it's '/a/b' and '/c d/e', 's3://b/my file.png'", "it's 'b' and 'e', 'my file.png'"),
        ("'https://host/a b/c' 'hf://o/n' 'a/b c/d'", "'https://host/a b/c' 'hf://o/n' 'a/b c/d'"),
    ],
)  # fmt: skip
def test_of_a_path_the_last_part_is_left(text: str, left: str) -> None:
    assert without_paths(text) == left


def test_folders_with_spaces_go_as_well() -> None:
    text = without_paths("gone: /data/my images/a b/1.png", ["/data/my images", "/"])
    assert text == "gone: a b/1.png"
    assert not re.search("/data", text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("org/llava /llava-7b/x /llavanext", "org/llava x llavanext"),
        ("/llava/my runs/a /llava. file:///llava/my runs/b", "my runs/a llava. my runs/b"),
        ("https://host/llava/a", "https://host/llava/a"),
    ],
)
def test_folders_are_whole_parts_of_paths(text: str, left: str) -> None:
    assert without_paths(text, ["/llava"]) == left
