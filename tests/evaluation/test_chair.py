"""CHAIR worked by hand on 30 captions: plurals, objects of two words, synonyms, and the authors' special cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation import published_a as published
from tests.evaluation.asking import answered, read
from vig_ray.errors import StageError
from vig_ray.evaluation.objects import COCO_NAMES, Objects, read_synonyms

SYNONYMS = """\
person, man, woman, boy, girl, child, rider, policeman, player, baby, adult, passenger
bicycle, bike
car, van, taxi
motorcycle, scooter,  motor bike
airplane, plane, jet
bus, minibus
train, locomotive
boat, canoe
traffic light, stoplight
bench
bird, goose
cat, kitten
dog, puppy
horse, pony
cow, calf, ox
tie, bow, bow tie
skis, ski
tennis racket, racket
wine glass
cup
knife
hot dog
cake, cheesecake
chair, seat, stool
couch, sofa
dining table, table, desk
toilet
tv, television
cell phone, phone, iPhone
teddy bear
bear
scissors
"""

# A caption, what its image shows, and what it mentions; what it mentions and the image doesn't show is invented.
CAPTIONS = [
    ("Two men ride bikes past a bus.", "person bicycle bus", "person bicycle bus"),
    ("Women and children sit on benches.", "person bench", "person person bench"),
    ("A policeman and three policemen near taxis.", "person", "person person car"),
    ("People watch the geese and a goose.", "person bird", "person bird bird"),
    ("Two knives, a cup and some cups.", "knife cup", "knife cup cup"),
    ("The calves follow an ox; oxen rest.", "cow", "cow cow cow"),
    ("Puppies and kittens on a sofa", "dog couch", "dog cat couch"),
    ("Ponies stand by the buses and minibuses.", "horse", "horse bus bus"),
    ("He wears ties. She has a bow tie.", "tie", "tie tie"),
    ("Bow, tie", "tie", "tie tie"),  # a comma keeps them apart
    ("A traffic light and two traffic lights", "traffic_light", "traffic_light traffic_light"),
    ("There is traffic, light and cars.", "car", "car"),
    ("Hot dogs and a hot dog on the table", "hot_dog dining_table", "hot_dog hot_dog dining_table"),
    ("A hot drink. A dog.", "dog", "dog"),
    ("teddy bears beside a bear", "teddy_bear", "teddy_bear bear"),
    ("Three wine glasses, a glass, and wine.", "wine_glass", "wine_glass"),
    ("A baby bird with an adult elephant", "bird", "bird"),  # an elephant isn't in this list
    ("A baby in the adult's arms", "person", "person person"),
    ("The passenger train and passenger jets leave.", "train", "train airplane"),
    ("A passenger on a train", "train person", "person train"),
    ("The train tracks lead to a train.", "train", "train"),
    ("The seat of the toilet is up.", "toilet", "toilet"),
    ("A toilet seat", "toilet", "toilet"),
    ("Seats and a stool", "chair", "chair chair"),
    ("A motor bike, a scooter and a motorcycle", "motorcycle", "motorcycle motorcycle motorcycle"),
    ("A man-made lake under blue skies at 5 o'clock.", "boat", ""),
    ("He skis with one ski; his dog's canoes.", "skis dog", "skis skis dog boat"),
    ("Tennis rackets and a racket", "tennis_racket", "tennis_racket tennis_racket"),
    ("An iPhone, phones and a TV's remote", "tv cell_phone", "cell_phone cell_phone tv"),
    ("**Cheesecake** and cakes/scissors (on a dining table)", "cake", "cake cake scissors dining_table"),
]
MENTIONED = (
    3
    + 3
    + 3
    + 3
    + 3
    + 3
    + 3
    + 3
    + 2
    + 2
    + 2
    + 1
    + 3
    + 1
    + 2
    + 1
    + 1
    + 2
    + 2
    + 2
    + 1
    + 1
    + 1
    + 2
    + 3
    + 0
    + 4
    + 2
    + 3
    + 4
)
# taxis; kittens; buses, minibuses; a bear; jets; canoes; scissors, a table.
INVENTED, WITH_INVENTED = 1 + 1 + 2 + 1 + 1 + 1 + 2, 7
SHOWN = (
    3
    + 2
    + 1
    + 2
    + 2
    + 1
    + 2
    + 1
    + 1
    + 1
    + 1
    + 1
    + 2
    + 1
    + 1
    + 1
    + 1
    + 1
    + 1
    + 2
    + 1
    + 1
    + 1
    + 1
    + 1
    + 1
    + 2
    + 1
    + 2
    + 1
)
FOUND = SHOWN - 1  # the boat of the lake alone isn't mentioned


def named(words: str) -> list[str]:
    return [word.replace("_", " ") for word in words.split()]


def annotations(folder: Path) -> None:
    """COCO's two files; an object is in the instances, or else only people's captions mention it."""
    names = [line.split(",")[0] for line in SYNONYMS.splitlines()]
    shown = {f"{number:02d}.jpg": named(objects) for number, (_, objects, _) in enumerate(CAPTIONS)}
    in_captions = {4, 11, 24}  # the images whose first object is in captions alone
    instances = {image: objs[int(image[:2]) in in_captions :] for image, objs in shown.items()}
    published.as_json(folder / "instances_val2014.json", published.coco(instances, names))
    told = {4: "some knives", 11: "Cars wait", 24: "A motorcycle that is parked"}
    captions = [{"image_id": 100 + number, "caption": text, "id": number} for number, text in told.items()]
    published.as_json(folder / "captions_val2014.json", {"annotations": captions, "images": []})
    published.written(folder / "synonyms.txt", SYNONYMS)


def test_thirty_captions_by_hand(tmp_path: Path) -> None:
    annotations(tmp_path)
    synonyms = str(tmp_path / "synonyms.txt")
    task, questions = read("chair", tmp_path / "instances_val2014.json", synonyms=synonyms, num_images="all")
    for question, (_, shown, _) in zip(questions, CAPTIONS, strict=True):
        assert question.expected == sorted(named(shown))
    first = questions[4]
    assert (first.id, first.prompt) == ("104", "<image>\nPlease describe this image in detail.")
    assert (first.images[0].uri, first.answer) == (str(tmp_path / "04.jpg"), "some knives")

    objects = read_synonyms("synonyms", SYNONYMS)
    for caption, _, mentions in CAPTIONS:
        assert objects.mentioned(caption) == named(mentions), caption

    found = answered(task, questions, [caption for caption, _, _ in CAPTIONS])
    by_hand = {"C_S": WITH_INVENTED / 30, "C_I": INVENTED / MENTIONED, "recall": FOUND / SHOWN}
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand)
    assert answered(task, questions[:2], ["A man's dog - a 'big' one!", "Dogs."])["length"] == (7 + 1) / 2

    times = np.arange(30) % 3
    repeated = [number for number, count in enumerate(times) for _ in range(count)]
    texts = [caption for caption, _, _ in CAPTIONS]
    assert answered(task, questions, texts, times) == pytest.approx(
        answered(task, [questions[n] for n in repeated], [texts[n] for n in repeated])
    )


def test_which_images(tmp_path: Path) -> None:
    annotations(tmp_path)
    options = {"synonyms": str(tmp_path / "synonyms.txt"), "max_new_tokens": "64", "prompt": "What is there?"}
    task, questions = read("chair", tmp_path, tmp_path / "val2014", num_images="5", captions="none", **options)
    assert task.max_new_tokens == 64
    assert len(questions) == 5
    assert all(str(question.images[0].uri).startswith(str(tmp_path / "val2014/")) for question in questions)
    assert questions[0].prompt == "<image>\nWhat is there?"
    assert all(question.answer is None for question in questions)
    _, others = read("chair", tmp_path, num_images="5", seed="1", **options)
    assert [each.id for each in others] != [each.id for each in questions]
    ids = published.written(tmp_path / "ids.txt", "104\n07.jpg\n104\n")
    _, listed = read("chair", tmp_path, ids=str(ids), **options)
    assert [question.id for question in listed] == ["104", "107"]

    rows = [{"question_id": 7, "image": published.struct(), "gt_object": ["dog", "wine glass"]}]
    task, questions = read("chair", published.as_parquet(tmp_path / "chair.parquet", rows))  # COCO's 80 names
    assert questions[0].expected == ["dog", "wine glass"]
    found = answered(task, questions, ["Dogs, a puppy, two people, wine glasses and a sofa."])
    assert (found["C_S"], found["C_I"], found["recall"]) == (1, 1 / 3, 1)


def test_no_name_of_cocos_is_lost() -> None:
    objects = Objects([(name,) for name in COCO_NAMES])
    plurals = {"sheep": "sheep", "skis": "skis", "scissors": "scissors", "broccoli": "broccoli", "person": "people"}
    plurals |= {"knife": "knives", "mouse": "mice", "bus": "buses", "bench": "benches", "couch": "couches"}
    plurals |= {"toothbrush": "toothbrushes", "sandwich": "sandwiches", "wine glass": "wine glasses"}
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == 80
    for name in COCO_NAMES:
        assert objects.mentioned(f"A {name}, and two {plurals.get(name, name + 's')}.") == [name, name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"synonyms.txt": ", man\n"}, "synonyms.txt, line 1: begins with a comma"),
        ({"synonyms.txt": "\n"}, "synonyms.txt: no line"),
        (
            {"synonyms.txt": "person, man\n"},
            ", which no line of the synonyms",
        ),
        ({"captions_val2014.json": None}, "captions_val2014.json: no such file"),
        ({"captions_val2014.json": '{"annotations": [{"image_id": 1}]}'}, "captions_val2014.json, annotation 1: no"),
        ({"instances_train2014.json": "{}"}, "expected one instances_*.json, found instances_train2014.json, inst"),
        ({"instances_val2014.json": '{"images": []}'}, "instances_val2014.json: no list under 'annotations'"),
        ({"instances_val2014.json": "{"}, "instances_val2014.json: not JSON"),
        ({"ids": "5\n"}, "ids, line 1: no image '5' in"),
        ({"num_images": "31"}, "30 images; give --task-options chair.num_images=all"),
        ({"num_images": "many"}, "--task-options chair.num_images=many: expected a whole number from 1 on"),
    ],
)
def test_what_is_wrong(tmp_path: Path, change: dict[str, str | None], said: str) -> None:
    annotations(tmp_path)
    options = {"synonyms": str(tmp_path / "synonyms.txt"), "num_images": "30"}
    for name, content in change.items():
        if name == "num_images":
            options[name] = str(content)
        elif content is None:
            (tmp_path / name).unlink()
        else:
            published.written(tmp_path / name, content)
    if "ids" in change:
        options["ids"] = str(tmp_path / "ids")
    with pytest.raises(StageError) as raised:
        read("chair", tmp_path, **options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
