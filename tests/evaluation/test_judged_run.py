"""`vig eval` of a task that a judge marks: a real judge on this machine, that is there, gone, and there again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.engines import gated
from tests.evaluation import published_b as published
from tests.evaluation.judge_server import error, judge_server
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.evaluation import job
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.judge import KEY

SECRET = "sk-not-to-be-seen-0123456789"
QUESTIONS = 6


def config_of(data: Path, out: Path, judge: str | None, tasks: str = "gqa,mm-vet") -> EvalConfig:
    files = {"gqa": data / "gqa/questions1.2", "mm-vet": data / "mm-vet"}
    named: dict[str, Any] = {} if judge is None else {"judge": judge, "judge_model": "gpt"}
    return EvalConfig(
        model=(f"demo={CHECKPOINT}",), tasks=tasks, out=str(out), engine="one_by_one:engine", rows_per_file=3, draws=20,
        max_new_tokens=4, data={task: str(files[task]) for task in tasks.split(",")}, **named,
    )  # fmt: skip


def rows_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "evaluation/demo").set_index("sample_key").sort_index()


def test_judged_answers_from_the_command_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(gated.__file__).parent))
    monkeypatch.setenv(KEY, SECRET)
    published.gqa(tmp_path / "gqa", QUESTIONS)
    published.mm_vet(tmp_path / "mm-vet", QUESTIONS)
    out = tmp_path / "out"
    with pytest.raises(StageError, match=r"^--tasks mm-vet: a judge marks its answers; --judge URL --judge-model NAME"):
        job.run(config_of(tmp_path, out, None), in_process=True)

    with judge_server() as server:
        url = server.url
        server.faults = [error(503, Retry_After="0"), error(404, "no model gpt")]
        with pytest.raises(StageError, match=r"^--judge http.*, gpt: HTTP 404, no model gpt; expected an OpenAI"):
            job.run(config_of(tmp_path, out, url), in_process=True)
        assert not (out / "evaluation/demo").exists()
        # It can't be understood for one question, and goes down after two: one line, and what it said is kept.
        good: list[str] = []

        def reply(body: dict[str, Any]) -> Any:
            prompt = body["messages"][-1]["content"]
            if "ready" not in prompt and len(set(good)) >= at_most:
                return error(503, "resting", Retry_After="0")
            good.append(prompt)
            return "who knows" if "x in 4?" in prompt else "0.5"

        server.reply, at_most = reply, 3
        down = r"gives no answer: HTTP 503, resting; what it has said is kept in .*/\.judge"
        with monkeypatch.context() as patch:
            patch.setattr("vig_ray.evaluation.judged.Judged.at_once", 1)  # none is answered while another fails
            with pytest.raises(StageError, match=down):
                job.run(config_of(tmp_path, out, url), in_process=True)
        # There again, the run goes on where it was.
        at_most = 100
        summary = job.run(config_of(tmp_path, out, url), in_process=True)
        counts = sorted(good.count(prompt) for prompt in set(good) if "ready" not in prompt)
        assert counts[:5] == [1] * 5  # nothing twice, but what couldn't be read
        assert counts[5] >= 3
        asked = len(server.asked)
        rows = rows_of(out)
        again = job.run(config_of(tmp_path, out, url), in_process=True)
        assert len(server.asked) == asked  # it has answered already: not even whether it is there is asked
        assert again.json() == summary.json()
        # Another folder, the same replies.
        kept = str(out / "evaluation/.judge")
        config = config_of(tmp_path, tmp_path / "other", url).model_copy(
            update={"task_options": {"mm-vet.judge_cache": kept}}
        )
        job.run(config, in_process=True)
        assert len(server.asked) == asked + 1 + 3  # whether it is there, and what couldn't be read

    judged = rows[rows.task == "mm-vet"]
    assert len(judged) == QUESTIONS
    assert judged.judge_prompt.notna().all()
    assert all(answer.strip() in prompt for answer, prompt in zip(judged.answer, judged.judge_prompt, strict=True))
    failed = judged[judged.error.notna()]
    assert [row.id for row in failed.itertuples()] == ["v1_4"]
    assert failed.error.iloc[0].startswith(
        "Mark: JudgeError: no verdict in 3 replies of the judge, the last: who knows"
    )
    assert failed.judge_reply.iloc[0] == "who knows"
    good = judged[judged.error.isna()]
    assert (good.judge_reply == "0.5").all()
    assert np.allclose(good.score, 0.5)
    assert rows[rows.task == "gqa"].judge_prompt.isna().all()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]

    # Gone before the run: one line, and nothing is asked of the model. Another task can still be asked.
    gone = tmp_path / "gone"
    with pytest.raises(StageError, match=r"^--judge http\S+, gpt: gives no answer: .*refused") as caught:
        job.run(config_of(tmp_path, gone, url), in_process=True)
    assert "\n" not in str(caught.value)
    assert not (gone / "evaluation/demo").exists()
    job.run(config_of(tmp_path, gone, None, "gqa"), in_process=True)
