"""CHAIR: objects that a model describes and that the image doesn't show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random

from vig_ray.errors import StageError
from vig_ray.evaluation.coco import read_captions, read_instances
from vig_ray.evaluation.files import Record, files_of, image_folder, marked, read_text, records
from vig_ray.evaluation.objects import COCO_NAMES, Objects, is_word, read_synonyms, words_of
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean, ratio
from vig_ray.storage import exists

PROMPT = "Please describe this image in detail."


class Chair:
    """Captions of COCO's images, held against the objects of its instances and of what people wrote of them."""

    name = "chair"
    source = "Rohrbach et al. 2018, Object Hallucination in Image Captioning, arXiv:1809.02156"
    options: Mapping[str, str] = {
        "synonyms": "file of objects and their synonyms as the authors have it, a line an object, its words after "
        "commas; without it COCO's 80 names",
        "captions": "COCO's captions_*.json of the same images, by default the one beside instances_*.json; none: only "
        "instances say what an image shows",
        "prompt": f"by default: {PROMPT}",
        "max_new_tokens": "of a caption, 512 by default; 64 for short ones",
        "num_images": "how many images, drawn by the seed, 500 by default; all: every one",
        "seed": "of the drawn images, 0 by default",
        "ids": "file of images to take instead, an id or a file name a line",
    }
    max_new_tokens = 512
    right_answers = False
    metrics_of = (
        Metric("C_S", higher_is_better=False, main=True),
        Metric("C_I", higher_is_better=False),
        Metric("recall"),
        Metric("length", percent=False),
    )

    def begin(self, given: Given) -> None:
        """Read the list of synonyms. Raises StageError where it can't be read or lacks an object of COCO's."""
        self.max_new_tokens = given.whole(self.name, "max_new_tokens", self.max_new_tokens)
        listed = given.options.get("synonyms")
        if listed is None:
            self._objects = Objects([(name,) for name in COCO_NAMES])
        else:
            self._objects = read_synonyms(listed, read_text(listed))

    def read(self, given: Given) -> Iterator[Question]:
        """An image a question, of `instances_*.json` and `captions_*.json`, or of lmms-eval's Parquet."""
        prompt, folder = given.options.get("prompt", PROMPT), image_folder(given)
        files = files_of(given.data, (".json", ".parquet"))
        if all(uri.endswith(".parquet") for uri in files):
            for row in (each for uri in files for each in records(uri)):
                images = row.images("image", folder)
                shown = sorted({self._named(name, row.where) for name in row.texts("gt_object")})
                yield Question(row.name("question_id"), marked(prompt, images), images, shown)
            return
        instances = _instances(given.data, files)
        coco, told = read_instances(instances), self._captions(given, instances)
        for image in _taken(given, instances, coco.files):
            captions = told.get(image, [])
            there = [self._named(name, instances) for name in coco.objects[image]]
            there += [name for caption in captions for name in self._objects.mentioned(caption)]
            images = Record(f"{instances}, image {image}", {"image": coco.files[image]}).images("image", folder)
            yield Question(
                str(image), marked(prompt, images), images, sorted(set(there)), answer=next(iter(captions), None)
            )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Counts of what a caption mentions, with repetitions, of that what isn't there, and of what is found."""
        mentioned, shown = self._objects.mentioned(answer.text), set(question.expected)
        invented = sum(name not in shown for name in mentioned)
        return {
            "score": float(not invented),
            "mentioned": float(len(mentioned)),
            "invented": float(invented),
            "shown": float(len(shown)),
            "found": float(len(shown & set(mentioned))),
            "length": float(sum(map(is_word, words_of(answer.text)))),
        }

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """C_S over captions, C_I over all mentions, recall over all objects of all images, words of a caption."""
        return {
            "C_S": mean(1 - marks["score"], weights_N),
            "C_I": ratio(marks["invented"], marks["mentioned"], weights_N),
            "recall": ratio(marks["found"], marks["shown"], weights_N),
            "length": mean(marks["length"], weights_N),
        }

    def _named(self, name: str, where: str) -> str:
        """An object of an image as the list of synonyms calls it."""
        if name not in self._objects.by_word:
            raise StageError(f"{where}: an object {name!r}, which no line of the synonyms has; add it to a line")
        return self._objects.by_word[name]

    def _captions(self, given: Given, instances: str) -> dict[int, list[str]]:
        """The captions of images, by the option or from beside the instances."""
        folder, slash, file = instances.rpartition("/")
        uri = given.options.get("captions", f"{folder}{slash}{file.replace('instances', 'captions', 1)}")
        if uri == "none":
            return {}
        if uri == instances or exists(uri).name != "File":
            raise StageError(
                f"{uri}: no such file; CHAIR counts what people's captions mention as shown, too: give COCO's captions "
                "with --task-options chair.captions=FILE, or none to go without"
            )
        return read_captions(uri)


def _instances(data: str, files: list[str]) -> str:
    named = [uri for uri in files if uri.rpartition("/")[2].startswith("instances")] if len(files) > 1 else files
    if len(named) != 1:
        found = ", ".join(uri.rpartition("/")[2] for uri in named) or "none"
        raise StageError(f"{data}: expected one instances_*.json, found {found}; name the file itself")
    return named[0]


def _taken(given: Given, instances: str, files: Mapping[int, str]) -> list[int]:
    """The ids of the images that are asked for."""
    listed = given.options.get("ids")
    if listed is not None:
        known = {str(image): image for image in files} | {file: image for image, file in files.items()}
        names = [line.strip() for line in read_text(listed).split("\n") if line.strip()]
        for number, name in enumerate(names, 1):
            if name not in known:
                raise StageError(f"{listed}, line {number}: no image {name!r} in {instances}")
        return list(dict.fromkeys(known[name] for name in names))
    if given.options.get("num_images") == "all":
        return list(files)
    wanted, seed = given.whole("chair", "num_images", 500), given.whole("chair", "seed", 0, least=0)
    if wanted > len(files):
        raise StageError(f"{instances}: {len(files)} images; give --task-options chair.num_images=all")
    return Random(seed).sample(sorted(files), wanted)
