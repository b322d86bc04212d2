"""Files of benchmarks in their authors' layouts, of made-up content, and the rows as the hub's copies have them."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

WORDS = ["red", "green", "two", "three", "the", "cat", "dog", "bus", "St.", "Mary's", "don't", "12", "1,200", "3.5"]
WORDS += ["50%", "a", "an", "yes", "no", "none", "left-hand", "window"]
Rows = list[dict[str, Any]]


def phrase(rng: random.Random, most: int = 3) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def picture(path: Path | None = None, colour: int = 0) -> bytes:
    """A small image's file; also written where a path is given."""
    out = io.BytesIO()
    suffix = "PNG" if path is None or path.suffix == ".png" else "JPEG"
    Image.new("RGB", (8, 8), (colour % 256, 90, 30)).save(out, suffix)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out.getvalue())
    return out.getvalue()


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def docvqa(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    rows = [
        {
            "questionId": 1000 + number,
            "question": f"What is in field {number}?",
            "question_types": [rng.choice(["form", "layout"])],
            "image": f"documents/page_{number // 2}.png",
            "docId": number // 2,
            "ucsf_document_id": f"doc{number // 2}",
            "ucsf_document_page_no": "1",
            "answers": [phrase(rng) for _ in range(rng.randint(1, 3))],
            "data_split": "val",
        }
        for number in range(count)
    ]
    head = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "val"}
    written(folder / "val_v1.0.json", head | {"data": rows})
    for row in rows:
        picture(folder / row["image"], row["docId"])
    return rows


def ten(rng: random.Random) -> list[str]:
    """What ten people answered: a few answers, some of them often."""
    kinds = [phrase(rng) for _ in range(rng.randint(1, 6))]
    return [rng.choice(kinds) for _ in range(10)]


def textvqa(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    rows = [
        {
            "question_id": 34602 + number,
            "question": f"what does the NASA sign {number} say?",
            "image_id": f"{number // 2:016x}",
            "image_classes": ["Sign"],
            "answers": ten(rng),
            "set_name": "val",
        }
        for number in range(count)
    ]
    written(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": rows})
    for row in rows:
        row["ocr_tokens"] = [phrase(rng, 1) for _ in range(3)]
        picture(folder / f"train_images/{row['image_id']}.jpg")
    tokens = {row["image_id"]: row["ocr_tokens"] for row in rows}
    for row in rows:
        row["ocr_tokens"] = tokens[row["image_id"]]
    ocr = [{"image_id": image, "ocr_tokens": each, "ocr_info": []} for image, each in tokens.items()]
    written(folder / "ocr/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    return rows


def vqav2(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    questions, annotations = [], []
    for number in range(count):
        key, image = 262148000 + number, 262148 + number // 3
        people = ten(rng)
        questions.append({"image_id": image, "question": f"How many dogs are in row {number}?", "question_id": key})
        annotations.append(
            {
                "question_id": key,
                "image_id": image,
                "question_type": "how many",
                "answer_type": rng.choice(["yes/no", "number", "other"]),
                "multiple_choice_answer": max(people, key=people.count),
                "answers": [
                    {"answer": each, "answer_confidence": "yes", "answer_id": place}
                    for place, each in enumerate(people, 1)
                ],
            }
        )
        picture(folder / f"val2014/COCO_val2014_{image:012d}.jpg")
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    written(folder / "v2_OpenEnded_mscoco_val2014_questions.json", head | {"questions": questions})
    written(folder / "v2_mscoco_val2014_annotations.json", head | {"annotations": annotations[::-1]})
    return [question | annotation for question, annotation in zip(questions, annotations, strict=True)]


def gqa(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    rows = {
        f"{20194000 + number}": {
            "semantic": [],
            "entailed": [],
            "equivalent": [],
            "question": f"Is thing {number} on the left?",
            "imageId": f"n{161000 + number // 2}",
            "isBalanced": True,
            "groups": {"global": None, "local": "c"},
            "answer": phrase(rng, 2).lower(),
            "semanticStr": "",
            "annotations": {},
            "types": {"detailed": "existRel", "semantic": "rel", "structural": rng.choice(["verify", "query"])},
            "fullAnswer": "",
        }
        for number in range(count)
    }
    written(folder / "questions1.2/testdev_balanced_questions.json", rows)
    for row in rows.values():
        picture(folder / f"questions1.2/images/{row['imageId']}.jpg")
    return [{"id": key, **row} for key, row in rows.items()]


def chartqa(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    rows: Rows = []
    for kind in ("human", "augmented"):
        of = [
            {
                "imgname": f"chart_{number // 2}.png",
                "query": f"What is bar {number}?",
                "label": rng.choice([phrase(rng, 1), f"{rng.randint(0, 90)}", f"{rng.uniform(0, 9):.2f}", "12%", "0"]),
            }
            for number in range(count // 2)
        ]
        written(folder / f"test/test_{kind}.json", of)
        rows += [{"type": f"{kind}_test", "question": row["query"], "answer": row["label"]} for row in of]
    for number in range((count // 2 + 1) // 2):
        picture(folder / f"test/png/chart_{number}.png")
    return rows


def scienceqa(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    problems: dict[str, Any] = {}
    for number in range(count):
        choices = [f"{phrase(rng)} {letter}" for letter in "pqrst"[: rng.randint(2, 5)]]
        problems[str(4 + number)] = {
            "question": f"Which of these is {number}?",
            "choices": choices,
            "answer": rng.randrange(len(choices)),
            "hint": rng.choice(["", f"A passage about {phrase(rng)}."]),
            "image": rng.choice([None, "image.png"]),
            "task": "closed choice",
            "grade": "grade5",
            "subject": rng.choice(["natural science", "social science"]),
            "topic": "",
            "category": "",
            "skill": "",
            "lecture": "",
            "solution": "",
            "split": "test",
        }
    written(folder / "problems.json", problems)
    written(
        folder / "pid_splits.json", {"train": [], "val": [], "test": list(problems), "minitest": list(problems)[:2]}
    )
    for key, problem in problems.items():
        if problem["image"]:
            picture(folder / f"images/test/{key}/image.png")
    return [{"id": key, **problem} for key, problem in problems.items()]


def mmbench(folder: Path, count: int, seed: int = 0, *, copies: bool = True) -> Rows:
    """`count` questions, each with its copies; images of copies are told by the first row's index."""
    rng = random.Random(seed)
    rows: Rows = []
    for number in range(count):
        options = [f"{phrase(rng, 2)} {letter}" for letter in "wxyz"[: rng.randint(2, 4)]]
        right = rng.randrange(len(options))
        encoded = base64.b64encode(picture(colour=number)).decode()
        hint = rng.choice(["", "Read the table,\nthen answer."])
        for by in range(len(options) if copies else 1):
            moved = options[by:] + options[:by]
            rows.append(
                {
                    "index": number + by * 1_000_000,
                    "question": f"What is thing {number}?",
                    "hint": hint,
                    **{letter: moved[place] if place < len(moved) else "" for place, letter in enumerate("ABCD")},
                    "answer": "ABCD"[(right - by) % len(options)],
                    "category": rng.choice(["ocr", "attribute"]) if by == 0 else rows[-1]["category"],
                    "image": encoded if by == 0 else str(number),
                    "source": "made",
                    "l2-category": "x",
                    "comment": "",
                    "split": "dev",
                }
            )
    rows.sort(key=lambda row: row["index"])
    with (folder / "MMBench_DEV_EN.tsv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return rows


def llava_bench(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    rows = [
        {
            "question_id": number,
            "image": f"{number // 2 + 1:03d}.jpg",
            "category": ["conv", "detail", "complex"][number % 3],
            "text": f"What about {number}?",
        }
        for number in range(count)
    ]
    captions = {row["image"]: f"A picture of {phrase(rng)}." for row in rows}
    answers = [{"question_id": row["question_id"], "text": phrase(rng, 8), "answer_id": "x"} for row in rows]
    written(folder / "questions.jsonl", lines(rows))
    written(
        folder / "context.jsonl",
        lines([{"id": key[:3], "image": key, "caption": text} for key, text in captions.items()]),
    )
    written(folder / "answers_gpt4.jsonl", lines(answers))
    for name in captions:
        picture(folder / "images" / name)
    return [
        row | {"question": row["text"], "caption": captions[row["image"]], "gpt_answer": answer["text"]}
        for row, answer in zip(rows, answers, strict=True)
    ]


def mm_vet(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    rows = {
        f"v1_{number}": {
            "imagename": f"v1_{number}.png",
            "question": f"What is x in {number}?",
            "answer": rng.choice([phrase(rng), "-1<AND>-5", "no<OR>empty"]),
            "imagesource": "",
            "capability": rng.sample(["rec", "ocr", "know", "gen", "spat", "math"], rng.randint(1, 3)),
        }
        for number in range(count)
    }
    written(folder / "mm-vet.json", rows)
    for row in rows.values():
        picture(folder / "images" / row["imagename"])
    return [{"question_id": key, **row} for key, row in rows.items()]


def mmhal(folder: Path, count: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    kinds = ["attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other"]
    rows = [
        {
            "question_type": kinds[number % 8],
            "question_topic": "vehicle",
            "image_id": f"{number:016x}",
            "image_src": f"https://example.com/{number}/{number}_o.jpg",
            "image_content": ["Tree", "Bus"],
            "question": f"What colour is bus {number}?",
            "gt_answer": phrase(rng, 6),
            "model_answer": "",
        }
        for number in range(count)
    ]
    written(folder / "response_template.json", rows)
    for row in rows:
        picture(folder / "images" / row["image_src"].rpartition("/")[2])
    return rows
