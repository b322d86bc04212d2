"""MME, HallusionBench, AMBER, MMStar and SEED-Bench: their layouts read, their scores worked by hand, what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation import published_a as published
from tests.evaluation.asking import answered, begun, read
from vig_ray.errors import StageError
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.yes_no import SHORT


def mme(folder: Path) -> None:
    asks = "Is it so? Please answer yes or no."
    published.mme(folder, "OCR", {"1": [(asks, "Yes"), ("Or so? Please answer yes or no.", "No")]}, split=False)
    published.mme(folder, "scene", {f"{n}": [(asks, "Yes"), (asks, "No")] for n in (2, 3)}, split=True)
    published.mme(folder, "code_reasoning", {"0001": [(asks, "Yes"), (asks, "No")]}, split=False)
    published.written(folder / "readme.txt", "not a subtask")


def test_mme(tmp_path: Path) -> None:
    mme(tmp_path)
    task, questions = read("mme", tmp_path)
    assert [question.unit for question in questions[::2]] == [
        *("OCR/1.jpg", "code_reasoning/0001.jpg", "scene/2.jpg", "scene/3.jpg")
    ]
    assert questions[1].prompt == "<image>\nOr so?" + SHORT
    assert questions[4].images[0].uri == str(tmp_path / "scene/images/2.jpg")
    _, plain = read("mme", tmp_path, prompt="plain", answered="likelihood")
    assert (plain[0].prompt, plain[0].choices) == ("<image>\nIs it so? Please answer yes or no.", ("Yes", "No"))

    found = answered(task, questions, ["Yes", "no.", "Yes", "Yes", "yes it is", "N", "It is", "No"])
    by_hand = {"OCR": 200, "code_reasoning": 50, "scene": 75 + 50, "perception": 325, "cognition": 50, "total": 375}
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand)
    assert found["unread"] == 1 / 8
    assert found["count"] != found["count"]  # not asked

    rows = [
        {**{"question_id": "OCR/1.jpg", "image": published.struct(), "category": "OCR"}, **asked}
        for asked in ({"question": "A?", "answer": "Yes"}, {"question": "B?", "answer": "No"})
    ]
    _, questions = read("mme", published.as_parquet(tmp_path / "mme.parquet", rows))
    assert [question.unit for question in questions] == ["OCR/1.jpg"] * 2


HALLUSION = [
    # Two figures with the same two questions, and the questions without one.
    *(published.hallusion_row("VS", 0, 0, question, 1, None) for question in (0, 1)),
    *(published.hallusion_row("VS", 0, 1, question, 1, "./VS/chart/0_1.png") for question in (0, 1)),
    *(published.hallusion_row("VS", 0, 2, question, 0, "./VS/chart/0_2.png") for question in (0, 1)),
    *(published.hallusion_row("VD", 0, 0, question, 1, "./VD/chart/0_0.png") for question in (0, 1)),
]


def test_hallusionbench(tmp_path: Path) -> None:
    file = published.as_json(tmp_path / "HallusionBench.json", HALLUSION)
    task, questions = read("hallusionbench", file, tmp_path / "figures")
    assert [question.id for question in questions] == [
        *("VS/chart/0/1/0", "VS/chart/0/1/1", "VS/chart/0/2/0", "VS/chart/0/2/1", "VD/chart/0/0/0", "VD/chart/0/0/1")
    ]
    assert {question.unit for question in questions} == {"VS/chart/0", "VD/chart/0"}
    assert questions[2].images[0].uri == str(tmp_path / "figures/VS/chart/0_2.png")
    assert questions[2].prompt == "<image>\nIs 0 of set 0 right?"
    # Wrong: the second question of VS' second figure. So of three pairs and three figures one each.
    texts = ["Yes", "It is, yes.", "Not at all", "yes", "yes", "Yes!"]
    found = answered(task, questions, texts)
    assert found == pytest.approx({"aAcc": 5 / 6, "qAcc": 3 / 4, "fAcc": 2 / 3, "yes": 5 / 6})
    assert answered(task, questions, texts, [2, 2, 2, 2, 0, 0])["qAcc"] == 1 / 2

    task, questions = read("hallusionbench", file, questions="all", prompt="short")
    assert questions[0].prompt == "Is 0 of set 0 right?" + SHORT
    # Without a figure "I can't tell" is right; a no isn't. The figures' share is as before.
    found = answered(task, questions, ["I can't tell", "No", *texts])
    assert found == pytest.approx({"aAcc": 6 / 8, "qAcc": 3 / 4, "fAcc": 2 / 3, "yes": 5 / 8})


AMBER = [
    {"id": 1, "type": "generative", "truth": ["person", "dog", "tree", "TV"], "hallu": ["cat", "car"]},
    {"id": 2, "type": "generative", "truth": ["cloud", "table"], "hallu": ["man"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 5, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 6, "type": "relation", "truth": "no"},
    {"id": 7, "type": "discriminative-relation", "truth": "yes"},
]
QUERIES = [
    {"id": row["id"], "image": f"AMBER_{1 + int(row['id'] == 2)}.jpg", "query": f"Query {row['id']}?"} for row in AMBER
]
DESCRIPTIONS = [
    # Women and the puppies go with what is there, screens with the TV; light is let pass; a cat and vehicles are
    # invented, and what one is tempted to see; "can" is a verb here, and a can is nowhere.
    "Two women and puppies watch screens. It can be seen that a light is on a cat. Vehicles and a can.",
    "A desk under clouds.",
]


def test_amber(tmp_path: Path) -> None:
    folder = published.amber(tmp_path / "data", AMBER, QUERIES)
    task, questions = read("amber", folder, tmp_path / "images")
    assert [question.group for question in questions] == [
        *("generative", "generative", "existence", "attribute", "attribute", "relation", "relation")
    ]
    assert (questions[1].prompt, questions[1].unit) == ("<image>\nQuery 2?", "AMBER_2.jpg")
    found = answered(task, questions, [*DESCRIPTIONS, "No.", "No", "No", "Yes", "It isn't said"])
    by_hand = {
        # woman, puppy, screen, light, cat, vehicle, can; desk, cloud.
        **{"CHAIR": 3 / 9, "Cover": (3 + 2) / (4 + 2), "Hal": 1 / 2, "Cog": 2 / 3},
        # No: said three times, right twice, and should have been said three times.
        **{"accuracy": 2 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "unread": 1 / 5},
        **{"AMBER": (1 - 3 / 9 + 2 / 3) / 2, "existence f1": 1, "attribute accuracy": 1 / 2, "attribute recall": 1},
        **{"relation accuracy": 0, "relation precision": 0, "relation f1": 0},
    }
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand)

    task, questions = read("amber", folder, part="attribute", prompt="short", answered="likelihood")
    assert [(question.id, question.choices) for question in questions] == [("4", ("Yes", "No")), ("5", ("Yes", "No"))]
    assert questions[0].prompt == "<image>\nQuery 4?" + SHORT
    found = answered(task, questions, ["Yes", "No"])
    assert (found["AMBER"], found["f1"]) == (1, 1)
    assert found["CHAIR"] != found["CHAIR"]


def test_mmstar(tmp_path: Path) -> None:
    finer = ["object counting", "recognition", "recognition", "geometry"]
    categories = ["fine-grained perception", "fine-grained perception", "fine-grained perception", "math"]
    rows = [
        {"index": number, "question": "What <image 1>?\nOptions: A: x, B: y", "image": published.struct(number)}
        | {"answer": letter, "category": categories[number], "l2_category": finer[number]}
        for number, letter in enumerate("ABCD")
    ]
    task, questions = read("mmstar", published.as_parquet(tmp_path / "mmstar.parquet", rows))
    assert questions[1].prompt == (
        "<image>\nWhat <image 1>?\nOptions: A: x, B: y\nAnswer with the option's letter from the given choices directly"
    )
    found = answered(task, questions, ["A", "The answer is B.", "d", "(A)"])
    assert found["fine-grained perception"] == pytest.approx((1 + 1 / 2) / 2)
    assert (found["average"], found["math"], found["unread"]) == (pytest.approx((1 + 1 / 2 + 0) / 3), 0, 1 / 4)

    table = [
        {"index": row["index"], "question": "What <image 1>?", "A": "x", "B": "two\ny", "C": "z", "D": "w"}
        | {name: row[name] for name in ("answer", "category", "l2_category")}
        | {"image": published.in_base64(number)}
        for number, row in enumerate(rows)
    ]
    _, same = read("mmstar", published.as_tsv(tmp_path / "MMStar.tsv", table), answered="likelihood")
    assert same[2].prompt == (
        "<image>\nWhat ?\nOptions:\nA. x\nB. two\ny\nC. z\nD. w\n\n"
        "Answer with the option's letter from the given choices directly"
    )
    assert (same[2].images[0].bytes, same[2].choices) == (published.picture(2), ("A", "B", "C", "D"))


def seed_rows() -> published.Rows:
    options = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    kinds = [("image", 1), ("image", 5), ("video", 10)]
    return [
        {"question_id": str(number), "question": "How many?", "data_type": kind, "question_type_id": dimension}
        | {"answer": "ABC"[number], "data_id": f"{number}_7", **options}
        for number, (kind, dimension) in enumerate(kinds)
    ]


def test_seed(tmp_path: Path) -> None:
    file = published.as_json(tmp_path / "SEED-Bench.json", {"questions": seed_rows(), "question_type": {}})
    task, questions = read("seed", file, tmp_path / "SEED-Bench-image")
    assert [question.group for question in questions] == ["scene understanding", "instances counting"]
    assert questions[1].images[0].uri == str(tmp_path / "SEED-Bench-image/1_7")
    assert questions[1].prompt == (
        "<image>\nHow many?\nA. One\nB. Two\nC. Three\nD. Four\n"
        "Answer with the option's letter from the given choices directly."
    )
    rows = [
        row | {"image": [published.struct(n) for n in range(1 + 2 * (row["data_type"] == "video"))]}
        for row in seed_rows()
    ]
    parquet = published.as_parquet(tmp_path / "seed.parquet", rows)
    task, questions = read("seed", parquet)
    assert [len(question.images) for question in questions] == [1, 1, 3]
    found = answered(task, questions, ["a", "Dog", "C. Three"])
    assert (found["all"], found["image"], found["video"]) == (2 / 3, 1 / 2, 1)
    assert (found["scene understanding"], found["instances counting"], found["unread"]) == (1, 0, 0)

    task, questions = read("seed", parquet, answered="texts")
    assert (questions[1].prompt, questions[1].answer) == ("<image>\nHow many? Answer :", "Two")
    assert questions[1].choices == ("One", "Two", "Three", "Four")
    assert answered(task, questions, ["One", "Two", "Four"])["all"] == 2 / 3
    assert begun("seed", Given(str(file), options={"answered": "texts"})).by == "token"  # type: ignore[attr-defined]


POPE = published.pope_rows(["yes"])[0]


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("pope", "random.json", [POPE | {"label": "maybe"}], "entry 1: 'label' is 'maybe'; expected one of yes, no"),
        ("pope", "all.json", [POPE], "all.json: the file's name has none of random, popular, adversarial"),
        ("pope", "random.json", [{**POPE, "text": None}], "entry 1: no 'question' (there are question_id, image"),
        ("pope", "random.json", [{**POPE, "text": 3}], "entry 1: 'text' is a number, not a string"),
        ("pope", "random.jsonl", json.dumps(POPE) + '\n{"b"', "random.jsonl, line 2: not JSON"),
        ("pope", "random.jsonl", "[1]", "random.jsonl, entry 1: a number, not an object"),
        ("pope", "random.json", [POPE | {"image": "../x.jpg"}], "lies outside the images folder"),
        ("pope", "random.xml", "", "no file in this folder ends with .json"),
        ("pope", "instances.json", published.coco({"1.jpg": ["cup"]}, ["cup"]), "0 images show at least 3 objects"),
        ("mme", "OCR/1.txt", "So?\tYes\n", "OCR/1.txt: no image 1 with .jpg"),
        ("mme", "x.parquet", "PAR1", "x.parquet: can't be read"),
        ("amber", "annotations.json", [], "no relation.json; expected the folder data/ of AMBER's repository"),
        ("hallusionbench", "h.json", [HALLUSION[2] | {"gt_answer": "2"}], "entry 1: 'gt_answer' is '2'; expected"),
        ("hallusionbench", "h.json", [HALLUSION[2] | {"set_id": None}], "entry 1: no 'set_id'"),
        ("mmstar", "m.tsv", "index\timage\n1\n", "m.tsv, row 1: 1 columns, and the header has 2"),
        ("mmstar", "m.tsv", "", "m.tsv: an empty file"),
        (
            "mmstar",
            "m.tsv",
            "category\tl2_category\timage\nmath\tx\t?\n",
            "m.tsv, row 1: 'image': BadImage: not base64",
        ),
        ("seed", "s.json", {"questions": [{"data_type": "audio"}]}, "entry 1: 'data_type' is 'audio'; expected one of"),
    ],
)
def test_what_is_wrong(tmp_path: Path, name: str, file: str, content: object, said: str) -> None:
    if isinstance(content, str):
        published.written(tmp_path / file, content)
    else:
        published.as_json(tmp_path / file, content)
    with pytest.raises(StageError) as raised:
        read(name, tmp_path)
    assert said in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_sets_of_one_sampling(tmp_path: Path) -> None:
    for name in ("coco_pope_random.json", "gqa_pope_random.json"):
        published.as_lines(tmp_path / name, [POPE])
    with pytest.raises(StageError, match=r"gqa_pope_random.json: .*coco_pope_random.json has the random sampling, too"):
        read("pope", tmp_path)
    with pytest.raises(StageError, match="nowhere: no such file or folder"):
        read("pope", tmp_path / "nowhere")
    with pytest.raises(StageError, match=r"--task-options pope.rules=mine: expected one of authors, lmms-eval"):
        read("pope", tmp_path, rules="mine")
