"""studies/emoji.py on a small package of the same layout, whose emoji are discs of one color each: what a picture shows
is read from its pixels, and what is true of that from the package's emoji.json."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from studies import emoji, emoji_found
from vig_ray.demo import CHECKPOINT, build
from vig_ray.errors import StageError
from vig_ray.study import file as files
from vig_ray.study.graph import spell_out

STUDY = Path(__file__).parents[2] / "studies" / "emoji.yaml"
Color = tuple[int, int, int]
# Each a color of its own, darker than anything behind them.
TAKEN: dict[str, tuple[str, str, Color]] = {
    "RED FISH": ("Animals & Nature", "animal-marine", (150, 0, 0)),
    "WHALE": ("Animals & Nature", "animal-marine", (0, 150, 0)),
    "OX": ("Animals & Nature", "animal-mammal", (0, 0, 150)),
    "CAT": ("Animals & Nature", "animal-mammal", (150, 150, 0)),
    "DOG FACE": ("Animals & Nature", "animal-mammal", (150, 0, 150)),
    "PEAR": ("Food & Drink", "food-fruit", (0, 150, 150)),
    "LIME": ("Food & Drink", "food-fruit", (80, 0, 0)),
    "HOT DOG": ("Food & Drink", "food-prepared", (0, 80, 0)),
    "FROG FACE": ("Animals & Nature", "animal-amphibian", (0, 0, 80)),
}
LEFT_OUT = {"FLAG": ("Flags", "flag", (80, 80, 0)), "ROSE": ("Food & Drink", "drink", (80, 0, 80))}
COLORS = {name.lower(): color for name, (_, _, color) in TAKEN.items()}
GROUPS = {name.lower(): group for name, (_, group, _) in TAKEN.items()}


def disc(color: Color) -> bytes:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((2, 2, 61, 61), fill=(*color, 255))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def content() -> dict[str, bytes]:
    """The package's files by name."""
    rows, made = [], {}
    for number, (name, (category, group, color)) in enumerate((TAKEN | LEFT_OUT).items()):
        row = {"name": name, "image": f"1f{number:03x}.png", "category": category, "subcategory": group}
        rows.append(row | {"short_name": name.lower(), "has_img_twitter": name != "ROSE"})
        made[f"img/twitter/64/1f{number:03x}.png"] = disc(color)
    about = {"name": "emoji-datasource-twitter", "version": "16.0.0"}
    return made | {"emoji.json": json.dumps(rows).encode(), "package.json": json.dumps(about).encode()}


def packed(path: Path, made: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as package:
        for name, text in made.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            package.addfile(member, io.BytesIO(text))
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("package") / "emoji.tgz", content())


@pytest.fixture(scope="module")
def made(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "emoji-data"
    given = ["--samples", "400", "--asked", "20", "--seeds", "2", "--wrong", "0.25", "--no-model"]
    assert emoji.main(["--out", str(out), "--package", str(package), *given]) == 0
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown(path: Path) -> list[str]:
    """The names of what a picture shows, from left to right."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        pixels = np.asarray(image)
    found = {}
    for name, color in COLORS.items():
        _, across = np.nonzero((pixels == color).all(axis=2))
        if len(across) > 20:
            found[name] = across.mean()
    return sorted(found, key=lambda name: found[name])


def truth(question: str, names: list[str]) -> str:
    """The answer to a question about a picture that shows these."""
    if question == "What is this called?":
        (only,) = names
        return only
    if question == "Which group is this in?":
        (only,) = names
        return GROUPS[only]
    if asked := re.fullmatch(r"Is this called (.+)\?", question):
        assert len(names) == 1
        return "yes" if asked[1] in names else "no"
    if question == "Describe the picture.":
        return f"this is {names[0]}" if len(names) == 1 else "{} on the left and {} on the right".format(*names)
    left, right = names
    if asked := re.fullmatch(r"What is on the (left|right)\?", question):
        return {"left": left, "right": right}[asked[1]]
    asked = re.fullmatch(r"On which side is the (.+)\?", question)
    assert asked
    return {left: "left", right: "right"}[asked[1]]


def test_samples_are_true_but_those_that_are_marked(made: Path) -> None:
    for seed, count in (("0", 400), ("1", 400), ("0/asked/held-out", 100)):
        rows = json.loads((made / seed / "data.json").read_text())
        known = lines(made / seed / "truth.jsonl")
        assert len(rows) == len(known) == count
        for row, mark in zip(rows, known, strict=True):
            asked, answered = row["conversations"]
            question = asked["value"].replace("<image>", "").strip()
            right = truth(question, shown(made / seed / row["image"]))
            assert (row["id"], row["source"], right) == (mark["id"], mark["kind"], mark["answer"])
            assert (answered["value"] != right) == mark["wrong"]
        wrong = sum(mark["wrong"] for mark in known)
        assert wrong == 0 if "held-out" in seed else 60 < wrong < 140
        right_rows = [row for row, mark in zip(rows, known, strict=True) if not mark["wrong"]]
        assert json.loads((made / seed / "right.json").read_text()) == right_rows
    assert (made / "0" / "data.json").read_text() != (made / "1" / "data.json").read_text()
    assert "CC-BY 4.0" in (made / "LICENSES.txt").read_text()


def test_questions_with_choices_are_true_and_even(made: Path) -> None:
    rows = lines(made / "0" / "asked" / "choices.jsonl")
    assert len(rows) == 5 * 20
    for row in rows:
        assert row["answer"] == truth(row["question"], shown(made / "0" / "asked" / row["image"]))
        assert row["answer"] in row["choices"]
        assert len(row["choices"]) == len(set(row["choices"])) == (2 if row["kind"] in ("called", "side") else 4)
    for kind in ("called", "side"):
        answers = [row["answer"] for row in rows if row["kind"] == kind]
        assert {answers.count(answer) for answer in answers} == {10}
    named = [row for row in rows if row["kind"] == "name" and GROUPS[row["answer"]] == "animal-mammal"]
    for row in named:  # the nearest ones are among the choices
        assert {"ox", "cat", "dog face"} <= set(row["choices"])
    assert named


def test_the_same_twice(made: Path, package: Path, tmp_path: Path) -> None:
    given = ["--samples", "400", "--asked", "20", "--seeds", "1", "--wrong", "0", "--no-model"]
    assert emoji.main(["--out", str(tmp_path), "--package", str(package), *given]) == 0
    assert (tmp_path / "0/asked/choices.jsonl").read_text() == (made / "0/asked/choices.jsonl").read_text()
    assert (tmp_path / "0/data.json").read_text() == (tmp_path / "0/right.json").read_text()
    # Without wrong answers all else is as it was.
    right = json.loads((made / "0/right.json").read_text())
    assert all(row in json.loads((tmp_path / "0/data.json").read_text()) for row in right)


def test_the_tower_learns_what_covers_each_patch(package: Path) -> None:
    questions = emoji.Questions(emoji.read(str(package)))
    rng = emoji.random.Random(0)
    for _ in range(20):
        scene = questions.scene("caption", rng)
        pixels = np.asarray(scene.draw()).reshape(4, 14, 4, 14, 3).swapaxes(1, 2).reshape(16, 196, 3)
        for patch, (which, side) in zip(pixels, questions.labels(scene), strict=True):
            covers = [int((patch == COLORS[each.name]).all(axis=1).sum()) for each in questions.emoji]
            if which == len(questions.emoji):
                assert side == 3
                assert max(covers) < 20
            else:
                assert covers[which] == max(covers)
                assert scene.things.index(questions.emoji[which]) == (0 if side == 2 else side)


def test_the_model_is_one_that_can_be_loaded(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "RECIPE", build.Recipe(1, 1, 2, 4))
    monkeypatch.setattr(build, "TOWER_BATCH", 2)
    out = tmp_path / "made"
    assert emoji.main(["--out", str(out), "--package", str(package), "--samples", "1", "--asked", "1"]) == 0
    tokenizer = build.AutoTokenizer.from_pretrained(out / "model")
    assert [len(tokenizer.tokenize(f"x {name}")) for name in ("whale", "dog face", "hot dog")] == [2, 3, 3]
    assert build.LlavaForConditionalGeneration.from_pretrained(out / "model").config.image_seq_length == 16


WRONG = {
    "another package": ("package.json", b'{"name": "left-pad"}', "is the package left-pad, not emoji-datasource"),
    "another version": (
        "package.json", b'{"name": "emoji-datasource-twitter", "version": "15.1.2"}', "is version 15.1.2; .*16.0.0"),
    "no package.json": ("package.json", None, "no package.json in it"),
    "no sheet": ("emoji.json", None, "no emoji.json in it"),
    "no JSON": ("emoji.json", b"[", "emoji.json: not JSON"),
    "another sheet": ("emoji.json", b"{}", "emoji.json: not as emoji-datasource-twitter has it"),
    "a row of something else": ("emoji.json", b'[{"name": "OX"}]', "emoji.json: row 0: no name, image or group"),
    "nothing to take": ("emoji.json", b"[]", "too few emoji"),
    "no picture": ("img/twitter/64/1f000.png", None, "no img/twitter/64/1f000.png in it"),
    "what is no picture": ("img/twitter/64/1f001.png", b"text", "img/twitter/64/1f001.png: not a picture"),
}  # fmt: skip


def error_of(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """What the script says of these options, in one line."""
    assert emoji.main(given) == 2
    text = capsys.readouterr().err
    assert text.startswith("emoji.py: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_such_package(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, text, told = WRONG[case]
    made = content()
    if text is None:
        del made[name]
    else:
        made[name] = text
    path = packed(tmp_path / "p.tgz", made)
    said = error_of(capsys, "--out", str(tmp_path / "out"), "--package", str(path))
    assert re.search(f"{path}: .*{told}", said), said
    assert not (tmp_path / "out").exists()


def test_what_is_no_file_or_no_option(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", str(tmp_path / "out"), "--package")
    assert "No such file" in error_of(capsys, *out, str(tmp_path / "nowhere.tgz"))
    (tmp_path / "text.tgz").write_text("no archive")
    assert "not a package's file" in error_of(capsys, *out, str(tmp_path / "text.tgz"))
    (tmp_path / "cut.tgz").write_bytes(package.read_bytes()[:900])
    assert "not a package's file" in error_of(capsys, *out, str(tmp_path / "cut.tgz"))
    assert "--wrong 1.5: takes a share" in error_of(capsys, *out, str(package), "--wrong", "1.5")
    assert "--seeds 0: takes 1 or more" in error_of(capsys, *out, str(package), "--seeds", "0")
    assert "something is there already" in error_of(capsys, "--out", str(tmp_path), "--package", str(package))


def npm(folder: Path, script: str) -> None:
    """An npm of this kind, a Python program."""
    path = folder / "npm"
    path.write_text(f"#!{sys.executable}\nimport shutil, sys\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_npm_fetches_it(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    given = ("--out", str(tmp_path / "out"), "--samples", "2", "--asked", "1", "--seeds", "1", "--no-model")
    assert "npm isn't there: install Node.js, or give --package" in error_of(capsys, *given)
    npm(tmp_path / "bin", "print('npm error code E404\\nnpm error 404  not found', file=sys.stderr); sys.exit(1)")
    assert "npm pack emoji-datasource-twitter@16.0.0: npm error code E404 npm error 404 not" in error_of(capsys, *given)
    npm(tmp_path / "bin", "sys.exit(0)")
    assert "exit status 0" in error_of(capsys, *given)
    copies = f"shutil.copy({str(package)!r}, sys.argv[4] + '/emoji-datasource-twitter-16.0.0.tgz')"
    npm(
        tmp_path / "bin",
        f"assert sys.argv[1:4] == ['pack', 'emoji-datasource-twitter@16.0.0', '--pack-destination']\n{copies}",
    )
    assert emoji.main(given) == 0
    assert (tmp_path / "out" / "0" / "data.json").exists()


def test_the_study_says_what_makes_its_data(made: Path, tmp_path: Path) -> None:
    path = shutil.copy(STUDY, tmp_path / "emoji.yaml")
    study = files.read(path)
    with pytest.raises(StageError, match=r"not there; first run: python studies/emoji\.py --out studies/emoji-data$"):
        spell_out(study, path, str(tmp_path / "out"))
    shutil.copytree(made, tmp_path / "emoji-data")
    os.symlink(tmp_path / "emoji-data" / "1", tmp_path / "emoji-data" / "2")
    os.symlink(CHECKPOINT, tmp_path / "emoji-data" / "model")
    graph = spell_out(study, path, str(tmp_path / "out"))
    assert len(graph.cells) == 3 * 7
    assert "python studies/emoji.py --out studies/emoji-data" in STUDY.read_text().splitlines()[0]


def test_auroc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 12, 200).astype(np.float64), rng.random(200) < 0.3
    assert emoji_found.auroc(values, positive) == pytest.approx(roc_auc_score(positive, values))
    assert np.isnan(emoji_found.auroc(values, np.zeros(200, bool)))


def stage(folder: Path, name: str, table: dict[str, Any], config: dict[str, str]) -> None:
    """A finished stage's Parquet file and record."""
    (folder / name).mkdir(parents=True)
    pq.write_table(pa.table(table), folder / name / "part-000000.parquet")
    record = {"stage": {"scores": "score", "selection": "select"}[name], "complete": True, "config": config}
    (folder / f"{name}.stage.json").write_text(json.dumps(record))


def test_what_was_found_of_wrong_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marks = [(kind, wrong) for kind in ("name", "side") for wrong in (True, False, False)]
    (tmp_path / "truth.jsonl").write_text(
        "".join(json.dumps({"kind": kind, "wrong": wrong}) + "\n" for kind, wrong in marks)
    )
    score, select = tmp_path / "study" / "runs" / "score-1", tmp_path / "study" / "runs" / "select-1"
    keys = [f"data/{number}" for number in range(6)]
    gains, losses = [-1.0, 0.5, 0.7, 0.2, 0.1, 0.3], [3.0, 1.0, 4.0, 1.0, 0.5, 2.0]
    # In another order than the data's, as scores may be.
    table = {"sample_key": keys[::-1], "vig": gains[::-1], "clean_loss": losses[::-1]}
    stage(score, "scores", table, {"data": str(tmp_path / "data.json")})
    kept = {"sample_key": keys[:3], "token_ids": [[1], [2, 3], [4]], "token_weights": [[1.0], [0.0, 1.0], None]}
    stage(select, "selection", kept, {"scores": str(score), "strategy": "vig"})
    assert emoji_found.main([str(tmp_path / "study")]) == 0
    told = capsys.readouterr().out
    for kind, numbers in {"name": "0.333 1.000 0.500", "side": "0.333 0.500 0.500", "all": "0.333 0.875 0.562"}.items():
        (line,) = (line for line in told.splitlines() if line.startswith(kind))
        assert re.findall(r"([\d.]+) \[", line) == numbers.split()
    assert re.search(r"^vig +0\.333 \[0\.333, 0\.333\]$", told, flags=re.MULTILINE)
    assert emoji_found.main([str(tmp_path)]) == 2
    assert "no scores of a study here" in capsys.readouterr().err
    assert emoji_found.main([]) == 2
