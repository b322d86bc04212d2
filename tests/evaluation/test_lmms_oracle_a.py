"""POPE, CHAIR, AMBER, HallusionBench, MME, MMStar and SEED-Bench held against lmms-eval 0.7.3's own functions.

Prompts, what is expected, and the scores of 200 made answers a task. It runs where lmms-eval can be imported:
`make test-lmms`. What it asks of models that come from the net is in a table here: parts of speech, base forms.
"""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import published_a as published
from tests.evaluation.asking import answered, read
from vig_ray.evaluation.parsing import option_letter
from vig_ray.evaluation.question import Question
from vig_ray.evaluation.tasks.mme import COGNITION, SUBTASKS

pytestmark = pytest.mark.lmms

ANSWERS = 200
SHORT = {"pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase."}
SAID = [
    *("Yes", "No", "yes", " no\n", "YES", "Yes.", "No.", "y", "N", "Yes, it is.", "No, there is none", "nothing"),
    *("It is not", "Eyes", "I know", "", "Perhaps", "  yes  ", "The answer is no", "No yes", "Not quite"),
]
LETTERS = [
    *("A", "b", "C.", "(D)", "D) four", "The answer is B", "B: two", "A dog", "I choose C because of A", "Because"),
    *("It is A. No, B.", "the correct option is (C), not (D)", "", "E", "none", "答案是 C", "C or D", "'A'", "B!"),
]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval 0.7.3 isn't in this environment; make test-lmms has one")


def lmms(module: str) -> Any:
    return importlib.import_module(f"lmms_eval.tasks.{module}")


def text_of(question: Question) -> str:
    """The prompt without the marks of its images, which lmms-eval hands over beside it."""
    return question.prompt.removeprefix("<image>\n" * len(question.images))


def drawn(said: list[str], seed: int = 0) -> list[str]:
    return random.Random(seed).choices(said, k=ANSWERS)


def test_pope(tmp_path: Path) -> None:
    module, rng = lmms("pope.utils"), random.Random(1)
    rows = [
        {**{"question_id": str(number), "question": f"Is there a cup {number} in the image?"},
         **{"answer": rng.choice(("yes", "no")), "image_source": "x", "image": published.struct()},
         "category": rng.choice(("adversarial", "popular", "random"))}
        for number in range(ANSWERS)
    ]  # fmt: skip
    made, questions = read("pope", published.as_parquet(tmp_path / "pope.parquet", rows), rules="lmms-eval")
    assert [text_of(question) for question in questions] == [module.pope_doc_to_text(row, SHORT) for row in rows]
    assert [question.expected for question in questions] == [row["answer"] for row in rows]
    texts = drawn(SAID)
    theirs = [module.pope_process_results(row, [text]) for row, text in zip(rows, texts, strict=True)]
    for part in ("", "adversarial ", "popular ", "random "):
        of_part = [each for each, row in zip(theirs, rows, strict=True) if part.strip() in ("", row["category"])]
        found = answered(made, questions, texts)
        for ours, name in (
            ("accuracy", "accuracy"),
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "f1_score"),
        ):
            score = getattr(module, f"pope_aggregate_{name}")([each[f"pope_{name}"] for each in of_part])
            assert found[part + ours] == pytest.approx(score, abs=1e-12)
    # Its share of yes is that of the labels; ours is that of the answers.
    labels = answered(made, questions, [row["answer"] for row in rows])["yes"]
    assert labels == pytest.approx(module.pope_aggregate_yes_ratio([each["pope_yes_ratio"] for each in theirs]))


def test_mme(tmp_path: Path) -> None:
    module, rng = lmms("mme.utils"), random.Random(2)
    rows = []
    for number in range(ANSWERS // 2):
        subtask = rng.choice(SUBTASKS)
        for answer in ("Yes", "No"):
            rows.append(
                {"question_id": f"{subtask}/{number}.png", "category": subtask, "answer": answer}
                | {"question": f"Is it {answer}? Please answer yes or no.", "image": published.struct()}
            )
    made, questions = read("mme", published.as_parquet(tmp_path / "mme.parquet", rows))
    assert [text_of(question) for question in questions] == [module.mme_doc_to_text(row, SHORT) for row in rows]
    texts = drawn(SAID)
    found = answered(made, questions, texts)
    theirs = [module.mme_process_results(row, [text]) for row, text in zip(rows, texts, strict=True)]
    for part in ("perception", "cognition"):
        results = [each[f"mme_{part}_score"] for each in theirs if f"mme_{part}_score" in each]
        assert found[part] == pytest.approx(module.mme_aggregate_results(results))
    assert set(COGNITION) == set(module.eval_type_dict["Cognition"])
    _, plain = read("mme", tmp_path, prompt="plain")
    assert [text_of(each) for each in plain] == [module.mme_doc_to_text(row, {}) for row in rows]


def test_hallusionbench(tmp_path: Path) -> None:
    module, rng = lmms("hallusion_bench.evaluate_hb"), random.Random(3)
    rows = [
        published.hallusion_row(rng.choice(("VD", "VS")), number // 12, figure, number % 6, rng.randrange(2), "x.png")
        for number in range(ANSWERS // 2)
        for figure in (1, 2)
    ]
    rows = list(
        {tuple(row[key] for key in ("category", "set_id", "figure_id", "question_id")): row for row in rows}.values()
    )
    made, questions = read("hallusionbench", published.as_json(tmp_path / "HallusionBench.json", rows))
    assert [text_of(question) for question in questions] == [module.hb_doc_to_text(row) for row in rows]
    texts = [
        text if rng.random() < 0.2 else ("No", "Yes")[int(row["gt_answer"])]
        for row, text in zip(rows, drawn(SAID), strict=False)
    ]
    found = answered(made, questions, texts)
    for name in ("aAcc", "qAcc", "fAcc"):
        results = [module.hb_process_results(row, [text])[name] for row, text in zip(rows, texts, strict=True)]
        assert found[name] == pytest.approx(getattr(module, f"hb_aggregation_result_{name}_intern")(results))


def test_mmstar(tmp_path: Path) -> None:
    module, rng = lmms("mmstar.utils"), random.Random(4)
    kwargs = {"pre_prompt": "", "post_prompt": "\nAnswer with the option's letter from the given choices directly"}
    rows = []
    for number in range(ANSWERS):
        category = rng.choice(list(module.eval_type_dict))
        rows.append(
            {"index": number, "question": f" What {number}?\nOptions: A: x, B: y, C: z, D: w ", "category": category}
            | {"l2_category": rng.choice(module.eval_type_dict[category]), "answer": rng.choice("ABCD")}
            | {"image": published.struct()}
        )
    made, questions = read("mmstar", published.as_parquet(tmp_path / "mmstar.parquet", rows))
    assert [text_of(question) for question in questions] == [module.mmstar_doc_to_text(row, kwargs) for row in rows]
    texts = drawn(LETTERS)
    found = answered(made, questions, texts)
    theirs = [module.mmstar_process_results(row, [text]) for row, text in zip(rows, texts, strict=True)]
    for name in ("average", *module.eval_type_dict):
        score = module.mmstar_aggregate_results([each[name] for each in theirs if name in each])
        assert found[name] == pytest.approx(score)

    table = [row | {"image": published.in_base64(), "A": "x", "B": "y", "C": "z", "D": "w"} for row in rows[:5]]
    _, questions = read("mmstar", published.as_tsv(tmp_path / "tsv/MMStar.tsv", table))
    assert [text_of(question) for question in questions] == [module.mmstar_oc_doc_to_text(row, kwargs) for row in table]


def test_option_letters() -> None:
    """The rule for letters alone, on answers put together at random."""
    theirs, rng = lmms("_task_utils.mcq_extract").extract_mcq_answer, random.Random(5)
    parts = ["A", "B", "C", "D", "(A)", "B.", "C:", "D)", " ", " ", ".", "the answer is", "Answer is", "my choice is"]
    parts += ["I pick", "best option is", "not", "Cat", "Bad", "dog", "答案是", "정답은", "!", "'", "\n", ",", "x"]
    for _ in range(5000):
        text = rng.choice(("", " ")).join(rng.choices(parts, k=rng.randint(0, 7)))
        assert (option_letter(text, "ABCD") or "") == theirs(text, choices=["A", "B", "C", "D"]), text


def test_seed(tmp_path: Path) -> None:
    module, rng = lmms("seedbench.utils"), random.Random(6)
    rows = []
    for number in range(ANSWERS):
        kind = rng.choice(("image", "video"))
        rows.append(
            {"question_id": str(number), "question": f"How many {number}?", "data_type": kind, "data_id": f"{number}"}
            | {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": f"{number}"}
            | {"question_type_id": 2 if kind == "image" else 11, "answer": rng.choice("ABCD")}
            | {"image": [published.struct()] * (1 if kind == "image" else 3)}
        )
    parquet = published.as_parquet(tmp_path / "seed.parquet", rows)
    made, questions = read("seed", parquet)
    assert [text_of(question) for question in questions] == [module.seed_doc_to_text(row) for row in rows]
    texts = drawn(LETTERS)
    found = answered(made, questions, texts)
    theirs = [module.seed_process_result(row, [text]) for row, text in zip(rows, texts, strict=True)]
    for name in ("all", "image", "video"):
        results = [each[f"seed_{name}"] for each in theirs if f"seed_{name}" in each]
        assert found[name] == pytest.approx(module.seed_aggregation_result(results))
    _, texts_compared = read("seed", parquet, answered="texts")
    for question, row in zip(texts_compared, rows, strict=True):
        assert text_of(question) == module.seed_doc_to_text_mc(row)
        assert list(question.choices) == module.seed_doc_to_choice(row)
        assert question.answer == module.seed_doc_to_mc_target(row)


# What nltk's taggers and WordNet would say of the words below; all others are nouns and their own base forms.
BASES = {"dogs": "dog", "benches": "bench", "knives": "knife", "cups": "cup", "lights": "light", "buses": "bus"}
BASES |= {"women": "woman", "glasses": "glass", "puppies": "puppy", "cars": "car"}
OTHERS = {"near": "IN", "and": "CC", "a": "DT", "the": "DT", "two": "CD", "with": "IN", ".": ".", ",": ",", "is": "VBZ"}
THINGS = ["dogs", "a dog", "two benches", "knives", "cups", "a traffic light", "two traffic lights", "buses", "women"]
THINGS += ["wine glasses", "a baby bird", "the passenger train", "puppies", "the toilet seat", "a bow tie", "a bus"]
THINGS += ["the teddy bear", "a cell phone", "hot dogs", "a table", "the train", "cars", "sheep", "the mouse"]


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts the table in the place of nltk's data, which has to be fetched from the net."""
    nltk = pytest.importorskip("nltk")
    tokenizer = nltk.tokenize.NLTKWordTokenizer()

    def tokens(text: str) -> list[str]:
        return [word for sentence in text.split(". ") for word in tokenizer.tokenize(sentence)]

    monkeypatch.setattr(nltk, "word_tokenize", tokens)
    monkeypatch.setattr(nltk, "pos_tag", lambda words: [(word, OTHERS.get(word.lower(), "NN")) for word in words])

    class Table:
        def lemmatize(self, word: str, pos: str = "n") -> str:
            return BASES.get(word, word)

    class Parts:
        ADJ, VERB, NOUN, ADV = "a", "v", "n", "r"

    def put(module: Any) -> None:
        monkeypatch.setattr(module, "WordNetLemmatizer", Table)
        if hasattr(module, "wordnet"):
            monkeypatch.setattr(module, "wordnet", Parts)

    return put


def sentence(rng: random.Random) -> str:
    first, *others = rng.choices(THINGS, k=rng.randint(1, 6))
    text = first.capitalize()
    for other in others:
        text += rng.choice((" near ", " and ", ", ", " with ", ". ")) + other
    return text + "."


def test_chair(tmp_path: Path, words: Any) -> None:
    module, rng = lmms("coco_cap_chair.utils"), random.Random(7)
    words(module)
    names = [*dict.fromkeys(module.INVERSE_SYNONYM_DICT.values())]
    lines = {name: [name] for name in names}
    for word, name in module.INVERSE_SYNONYM_DICT.items():
        if word != name:
            lines[name].append(word)
    synonyms = published.written(tmp_path / "synonyms.txt", "\n".join(", ".join(line) for line in lines.values()))
    rows = [
        {"question_id": number, "image": published.struct(), "gt_object": rng.sample(names[:30], 4)}
        for number in range(ANSWERS)
    ]
    data = published.as_parquet(tmp_path / "chair.parquet", rows)
    made, questions = read("chair", data, synonyms=str(synonyms))
    assert [text_of(question) for question in questions] == [module.coco_cap_chair_doc_to_text(row) for row in rows]
    assert [question.expected for question in questions] == [sorted(row["gt_object"]) for row in rows]
    texts = [sentence(rng) for _ in rows]
    found = answered(made, questions, texts)
    theirs = [module.coco_cap_chair_process_result(row, [text]) for row, text in zip(rows, texts, strict=True)]
    for ours, name in (("C_I", "chair_i"), ("C_S", "chair_s"), ("recall", "recall")):
        score = getattr(module, f"coco_cap_chair_aggregate_results_{name}")(
            [each[f"coco_cap_{name}"] for each in theirs]
        )
        assert 100 * found[ours] == pytest.approx(score)
    assert 0 < found["C_I"] < 1


def test_amber(tmp_path: Path, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without near synonyms, of which ours has none; and without the thousandth that each of its counts starts with."""
    module, rng = lmms("amber_g.utils"), random.Random(8)
    words(module)
    monkeypatch.setattr(module, "check_synonyms_word", lambda one, other, threshold: one == other)
    monkeypatch.setattr(module, "METADATA_DIR", str(tmp_path / "metadata"))
    monkeypatch.setattr(module, "_ASSOCIATION", None)
    listed = list(published.AMBER_RELATION)
    annotations: published.Rows = [
        {"id": number, "type": "generative", "truth": rng.choices(listed, k=4), "hallu": rng.sample(listed, 3)}
        for number in range(1, ANSWERS + 1)
    ]
    queries = [{"id": row["id"], "image": "x.jpg", "query": "Describe this image."} for row in annotations]
    published.amber(tmp_path / "metadata", annotations, queries)
    counts = [
        f"{name}_{part}" for name in ("chair", "safe_cover", "hallu_cover", "non_hallu") for part in ("score", "num")
    ]
    published.written(tmp_path / "metadata/metrics.txt", "".join(f"{count}=0\n" for count in counts))
    made, questions = read("amber", tmp_path / "metadata")
    # lmms-eval's own words lack the full stop that the authors' query has.
    assert {text_of(question) for question in questions} == {module.amber_g_doc_to_text({}) + "."}
    things = [
        "dogs",
        "a puppy",
        "two cats",
        "women",
        "the man",
        "people",
        "trees",
        "a forest",
        "cars",
        "a TV",
        "screens",
    ]
    things += ["the table", "a desk", "clouds", "lights", "a light", "the boat"]
    monkeypatch.setitem(BASES, "cats", "cat")
    for plural in ("trees", "screens", "clouds"):
        monkeypatch.setitem(BASES, plural, plural[:-1])
    texts = [" and ".join(rng.choices(things, k=rng.randint(0, 6))) + "." for _ in annotations]
    found = answered(made, questions, texts)
    theirs = [
        module.amber_g_process_result(
            {"question_id": row["id"], "truth": list(row["truth"]), "hallu": list(row["hallu"])}, [text]
        )
        for row, text in zip(annotations, texts, strict=True)
    ]
    for ours in ("CHAIR", "Cover", "Hal", "Cog"):
        results = [each[f"amber_{ours.lower()}"] for each in theirs]
        assert 100 * found[ours] == pytest.approx(getattr(module, f"amber_g_aggregate_{ours.lower()}")(results))


def test_amber_yes_and_no(tmp_path: Path) -> None:
    module, rng = lmms("amber_g.utils"), random.Random(9)
    types = ["discriminative-hallucination", "discriminative-attribute-state", "relation"]
    annotations: published.Rows = [
        {"id": number, "type": rng.choice(types), "truth": rng.choice(("yes", "no"))} for number in range(ANSWERS)
    ]
    queries = [{"id": row["id"], "image": "x.jpg", "query": "Is it?"} for row in annotations]
    made, questions = read("amber", published.amber(tmp_path, annotations, queries))
    texts = drawn(SAID)
    found = answered(made, questions, texts)
    counts: Any = {}
    for name in ("", "as_", "an_", "aa_", "ha_", "asso_"):
        for count in ("correct", "no", "ans_no"):
            counts |= {f"{name}qa_{count}_score": 0, f"{name}qa_{count}_num": 0}
    for row, text in zip(annotations, texts, strict=True):
        module.process_discriminative_task({"question_id": row["id"], "text": text}, row, counts)
    for ours, theirs in (("", ""), ("existence ", "ha_"), ("attribute ", "as_"), ("relation ", "asso_")):
        for name, count in (("accuracy", "correct"), ("precision", "ans_no"), ("recall", "no")):
            score = counts[f"{theirs}qa_{count}_score"] / counts[f"{theirs}qa_{count}_num"]
            assert found[ours + name] == pytest.approx(score)
