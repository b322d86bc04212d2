"""`vig demo --evaluate`: whether training on a selection helped, on questions of which the world knows the answers.

From the look's packaged model, one epoch each on all samples (`full`), on 70 % of them by chance (`random`) and on the
samples and tokens that VIG selects (`vig`), then `vig eval` of the four. Among the samples are questions whether there
is a thing, which the first look's model has never been asked. What is asked afterwards is of other images:

    pope                  is there a red circle? the objects asked for by POPE's three samplings
    chair                 a caption, and which of its objects aren't there
    choices               what color is the circle? four answers to choose from; of the harder look, four kinds of
                          questions with two to six answers
    exact                 of the harder look: the same questions, answered in the model's own words
    blind-faith:choices   the same with a false answer stated before
    held-out              samples of the world, of any kind but the wrong ones: loss, gain, and the answer itself
"""

from __future__ import annotations

import os
from typing import Any

from vig_ray.demo.asked import CHOICES, HELD_OUT, OBJECTS, SYNONYMS
from vig_ray.demo.looks import Look
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.job import run as evaluate
from vig_ray.evaluation.summary import EvalSummary
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.job import run as score
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.job import run as select
from vig_ray.training.config import TrainConfig
from vig_ray.training.job import run as train

STRATEGIES: dict[str, dict[str, Any]] = {"full": {}, "random": {"p": 70.0}, "vig": {"p": 70.0}}


def run(out: str, look: Look, data: str, asked: str, *, images: int, seed: int) -> EvalSummary:
    """Score `data`, a file of `look.write_training`, select, train, and ask what the folder `asked` of
    `look.write_asked` has.

    Everything goes to `out`; what is there already, by the same options, is taken. Raises StageError.
    """
    score(ScoreConfig(data=data, model=look.checkpoint, out=out, overwrite=True))
    models = [f"aligned={look.checkpoint}"]
    for strategy, options in STRATEGIES.items():
        to = os.path.join(out, strategy)
        select(SelectConfig(scores=out, out=to, strategy=strategy, seed=seed, overwrite=True, **options))
        config = TrainConfig(
            model=look.checkpoint, samples=os.path.join(out, "samples"), selection=os.path.join(to, "selection"),
            out=to, global_batch=32, lr=look.lr, watch=("none",), seed=seed, overwrite=True,
        )  # fmt: skip
        train(config)
        models.append(f"{strategy}={os.path.join(to, 'model')}")
    objects, choices = os.path.join(asked, OBJECTS), os.path.join(asked, CHOICES)
    data_of = dict.fromkeys(("pope", "chair"), objects)
    data_of |= dict.fromkeys(("choices", "exact", "blind-faith:choices"), choices)
    data_of["held-out"] = os.path.join(asked, HELD_OUT)
    return evaluate(
        EvalConfig(
            model=tuple(models),
            tasks=look.tasks,
            data={task: data_of[task] for task in look.tasks},
            images=dict.fromkeys(("pope", "chair"), os.path.join(asked, "images")),
            task_options={
                "pope.per_image": "2",
                "pope.num_images": str(images),
                "pope.prompt": "plain",
                "chair.prompt": "Describe the image.",
                "chair.captions": "none",
                "chair.num_images": "all",
                "chair.max_new_tokens": str(look.caption_tokens),
            },
            synonyms=os.path.join(asked, SYNONYMS),
            out=out,
            overwrite=True,
        )
    )
