"""Files of POPE, CHAIR, AMBER, HallusionBench, MME, MMStar and SEED-Bench in their layouts, with a content of ours."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = list[dict[str, Any]]


def picture(colour: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (colour % 256, 90, 30)).save(out, "PNG")
    return out.getvalue()


def written(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def as_json(path: Path, content: Any) -> Path:
    return written(path, json.dumps(content))


def as_lines(path: Path, rows: Rows) -> Path:
    return written(path, "".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(path: Path, rows: Rows) -> Path:
    """Rows with their images as Hugging Face's structs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def as_tsv(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def struct(colour: int = 0) -> dict[str, Any]:
    return {"bytes": picture(colour), "path": None}


def in_base64(colour: int = 0) -> str:
    return base64.b64encode(picture(colour)).decode()


def pope_rows(labels: Iterable[str], objects: Iterable[str] | None = None) -> Rows:
    labels = list(labels)
    named = list(objects or (f"thing{number}" for number in range(len(labels))))
    return [
        {
            "question_id": number + 1,
            "image": f"COCO_val2014_{number // 6:012d}.jpg",
            "text": f"Is there a {named[number]} in the image?",
            "label": label,
        }
        for number, label in enumerate(labels)
    ]


def coco(images: dict[str, list[str]], names: list[str]) -> dict[str, Any]:
    """An instances file of images by their objects."""
    annotations = [
        {"id": 1, "image_id": number, "category_id": names.index(name) + 5, "segmentation": [[1.5, 2, 3, 4]], "area": 7}
        for number, objects in enumerate(images.values(), 100)
        for name in objects
    ]
    return {
        "info": {},
        "images": [{"id": number, "file_name": file} for number, file in enumerate(images, 100)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 5)],
    }


AMBER_RELATION = {
    "dog": ["puppy"],
    "puppy": [],
    "cat": [],
    "person": ["man", "woman", "people"],
    "man": [],
    "tree": ["forest", "leave"],
    "car": ["vehicle"],
    "TV": ["screen"],
    "can": [],
    "table": ["desk"],
    "cloud": [],
    "light": [],
}


def amber(folder: Path, annotations: Rows, queries: Rows) -> Path:
    as_json(folder / "annotations.json", annotations)
    as_json(folder / "query/query_all.json", queries)
    as_json(folder / "relation.json", AMBER_RELATION)
    written(folder / "safe_words.txt", "light\nsign\n")
    return folder


def hallusion_row(
    category: str, set_id: int, figure: int, question: int, answer: int, file: str | None
) -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": "0" if file is None else "1",
        "set_id": str(set_id),
        "figure_id": str(figure),
        "sample_note": "x",
        "question_id": str(question),
        "question": f"Is {question} of set {set_id} right?",
        "gt_answer_details": "It is.",
        "gt_answer": str(answer),
        "filename": file,
    }


def mme(folder: Path, subtask: str, images: dict[str, list[tuple[str, str]]], *, split: bool) -> None:
    """A subtask's folder; `split`: with folders of its own for images and texts, as the larger ones have."""
    for stem, questions in images.items():
        text = "".join(f"{question}\t{answer}\n" for question, answer in questions)
        written(folder / subtask / ("images" if split else "") / f"{stem}.jpg", picture())
        written(folder / subtask / ("questions_answers_YN" if split else "") / f"{stem}.txt", text)
