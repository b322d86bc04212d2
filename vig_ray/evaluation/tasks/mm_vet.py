"""MM-Vet: open questions that take several abilities, judged by how right answers are. `--data mm-vet=mm-vet.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vig_ray.evaluation.beside import ImageFiles, file_of, keyed
from vig_ray.evaluation.files import marked
from vig_ray.evaluation.judge import JudgePrompt
from vig_ray.evaluation.judged import JUDGE_OPTIONS, Judged, Verdict, words
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean

_ABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_OWN = """Say how correct a model's answer to a question about an image is: a number from 0.0, all wrong, to 1.0, all \
right, in steps of 0.1. Where the right answer has parts with <AND> between them, all of them are needed for 1.0, and \
some of them are worth a share of it. Where it has <OR>, any one of the parts is enough. Fill in the last place of the \
last line: reply with the number and nothing else.

Question | Right answer | Model's answer | Correctness
--- | --- | --- | ---
Which fruits are in the bowl? | apple <AND> pear | two lemons | 0.0
Which fruits are in the bowl? | apple <AND> pear | There is an apple. | 0.5
Which fruits are in the bowl? | apple <AND> pear | an apple, a pear | 1.0
What is the animal doing? | sleeping <OR> resting | The cat seems to be resting on a chair. | 1.0
Why is the sign funny? | It tells people who can't read to ask for help in writing. | It is about people who can't \
read. | 0.4
"""


class MMVet(Judged):
    """`data`: mm-vet.json with images/ beside it, or their folder, as its authors publish it.

    A judge compares each answer with the right one. Questions are put as they are; lmms-eval's task puts a request to
    think step by step before them, which the benchmark's authors don't.
    """

    name = "mm-vet"
    source = "Yu et al., MM-Vet, ICML 2024, https://arxiv.org/abs/2308.02490"
    options: Mapping[str, str] = JUDGE_OPTIONS | {
        "prompt": "its authors' mm-vet_evaluator.py, or a file of the prompt alone; by default vig-ray's own words"
    }
    max_new_tokens = 1024
    metrics_of = (Metric("score", main=True), *(Metric(ability) for ability in _ABILITIES))

    def read(self, given: Given) -> Iterator[Question]:
        """Questions about one image are a unit; the group is the abilities that one takes."""
        files = ImageFiles(self.name, given)
        where = "its authors' mm-vet_evaluator.py, https://github.com/yuweihao/MM-Vet"
        prompt = words(self.name, given, "prompt", where, _OWN, ("prompt", "MM_VET_PROMPT"))
        for key, record in keyed(file_of(self.name, given.data, "mm-vet.json")):
            abilities, name = record.texts("capability"), record.text("imagename")
            unknown = [each for each in abilities if each not in _ABILITIES]
            if unknown:
                raise record.fault(f"'capability' has {unknown[0]!r}; expected {', '.join(_ABILITIES)}")
            image, answer = files.image(record, f"images/{name}", name), record.text("answer")
            yield Question(
                id=key,
                prompt=marked(record.text("question"), [image]),
                images=(image,),
                expected=answer,
                answer=None if "<AND>" in answer or "<OR>" in answer else answer,
                group="_".join(each for each in _ABILITIES if each in abilities),
                unit=name,
                more={"question": record.text("question"), "abilities": abilities, "judge": prompt},
            )

    def asked(self, question: Question, answer: Answer) -> JudgePrompt:
        """The prompt and a last line of its table, without the number."""
        right = question.expected.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        line = " | ".join([question.more["question"], right, answer.text.strip(), ""])
        return JudgePrompt(f"{question.more['judge']}\n{line}", max_tokens=16)

    def verdict(self, reply: str) -> Verdict | None:
        """The number from 0 to 1 that a reply begins with."""
        try:
            score = float((reply.split() or [""])[0])
        except ValueError:
            return None
        return (score,) if 0 <= score <= 1 else None

    def worth(self, question: Question, verdict: Verdict) -> Marks:
        """The judge's number, and which abilities it tells of."""
        of = {ability: float(ability in question.more["abilities"]) for ability in _ABILITIES}
        return {"score": verdict[0]} | of

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Means of the judge's numbers, of all questions and of those that take an ability."""
        scores_N = marks["score"]
        of = {ability: mean(scores_N, weights_N * marks[ability]) for ability in _ABILITIES}
        return {"score": mean(scores_N, weights_N)} | of
