"""LLaVA-Bench (In-the-Wild): open questions, judged beside GPT-4's answers. `--data llava-bench=FOLDER`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.beside import ImageFiles, file_of
from vig_ray.evaluation.files import Record, marked, read_json, records
from vig_ray.evaluation.judge import JudgePrompt
from vig_ray.evaluation.judged import JUDGE_OPTIONS, Judged, Verdict, log
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean

_KINDS = ("conv", "detail", "complex")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_OWN_ROLE = "Assistant"
_OWN = (
    "Above are sentences that describe an image, a question about the image, and what two assistants answered. Rate "
    "each answer as a whole from 1 to 10, 10 being best, by how helpful, relevant, accurate and detailed it is.\n"
    "Begin with a line that holds two numbers and nothing else: the rating of Assistant 1, a space, the rating of "
    "Assistant 2.\n"
    "Explain the ratings from the next line on. Don't let it count which of the answers comes first."
)


class LLaVABench(Judged):
    """`data`: the folder of questions.jsonl, context.jsonl, answers_gpt4.jsonl and images/, as its authors publish it.

    The judge rates GPT-4's answer, which was written from a description of the image, and the model's. The score is the
    model's mean rating in percent of GPT-4's.
    """

    name = "llava-bench"
    source = "Liu et al., Visual Instruction Tuning, NeurIPS 2023, https://arxiv.org/abs/2304.08485, section 5"
    options: Mapping[str, str] = JUDGE_OPTIONS | {
        "rules": "its authors' rule.json, which has the judge's prompts; by default vig-ray's own words"
    }
    max_new_tokens = 1024
    metrics_of = (Metric("score", main=True), *(Metric(kind) for kind in _KINDS))

    def read(self, given: Given) -> Iterator[Question]:
        """Questions about one image are a unit; the group is their kind."""
        files = ImageFiles(self.name, given)
        rules = _rules(given)
        contexts = {
            record.text("image"): _caption(record)
            for record in records(file_of(self.name, given.data, "context.jsonl"))
        }
        answers = {
            record.name("question_id"): record.text("text")
            for record in records(file_of(self.name, given.data, "answers_gpt4.jsonl"))
        }
        for record in records(file_of(self.name, given.data, "questions.jsonl")):
            key, name = record.name("question_id"), record.text("image")
            if key not in answers:
                raise record.fault(f"answers_gpt4.jsonl has no question {key}")
            if name not in contexts:
                raise record.fault(f"context.jsonl has no image {name}")
            kind = record.one_of("category", _KINDS)
            image = files.image(record, f"images/{name}", name)
            yield Question(
                id=key,
                prompt=marked(record.text("text"), [image]),
                images=(image,),
                expected=answers[key],
                answer=answers[key],
                group=kind,
                unit=name,
                more={"question": record.text("text"), "context": contexts[name], **rules[kind]},
            )

    def asked(self, question: Question, answer: Answer) -> JudgePrompt:
        """What the judge is asked, in the order and between the brackets that its authors have."""
        more, role = question.more, question.more["role"]
        parts = [f"[Context]\n{more['context']}", f"[Question]\n{more['question']}"]
        for number, text in ((1, question.expected), (2, answer.text.strip())):
            parts += [f"[{role} {number}]\n{text}", f"[End of {role} {number}]"]
        return JudgePrompt("\n\n".join([*parts, f"[System]\n{more['rule']}"]) + "\n\n", temperature=0.2)

    def verdict(self, reply: str) -> Verdict | None:
        """Two ratings from 0 to 10 in the first line, the reference's first; None for a line with more or fewer."""
        line = reply.strip().partition("\n")[0]
        ratings = tuple(float(number) for number in _NUMBER.findall(line))
        return ratings if len(ratings) == 2 and max(ratings) <= 10 else None

    def worth(self, question: Question, verdict: Verdict) -> Marks:
        """Both ratings, `score` of the model's, by kind as well."""
        reference, rating = verdict
        marks = {"score": rating / 10, "rating": rating, "reference": reference}
        of_kind = {f"is_{kind}": float(question.group == kind) for kind in _KINDS}
        return marks | of_kind

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """The model's mean rating over the reference's, of all questions and of each kind."""
        weights = {"score": weights_N} | {kind: weights_N * marks[f"is_{kind}"] for kind in _KINDS}
        return {name: _ratio(marks, each) for name, each in weights.items()}


def _ratio(marks: Columns, weights_N: Weights) -> float:
    reference = mean(marks["reference"], weights_N)
    return mean(marks["rating"], weights_N) / reference if reference else float("nan")


def _caption(record: Record) -> str:
    caption = record.value("caption")
    return "\n".join(record.texts("caption")) if isinstance(caption, list) else record.text("caption")


def _rules(given: Given) -> dict[str, dict[str, str]]:
    """The judge's prompt and the answers' name in it, by kind."""
    path = given.options.get("rules")
    if path is None:
        log.info(
            "llava-bench: the judge is asked in vig-ray's own words; --task-options llava-bench.rules=rule.json asks "
            "in those of its authors, https://github.com/haotian-liu/LLaVA/tree/main/llava/eval/table"
        )
        return {kind: {"rule": _OWN, "role": _OWN_ROLE} for kind in _KINDS}
    whole: Any = read_json(path)
    rules = {}
    for kind in _KINDS:
        rule = whole.get(f"llava_bench_{kind}") if isinstance(whole, Mapping) else None
        if not isinstance(rule, Mapping):
            raise StageError(f"{path}: no 'llava_bench_{kind}'; is this its authors' rule.json?")
        record = Record(f"{path}, key 'llava_bench_{kind}'", dict(rule))
        rules[kind] = {"rule": record.text("prompt"), "role": record.text("role")}
    return rules
