"""What an audit advises, and that its commands are ones that `vig select` takes."""

from __future__ import annotations

import math
import shlex

from vig_ray.arguments import Parser, add_options
from vig_ray.audit.advice import advice
from vig_ray.audit.signal import Signal
from vig_ray.selection.config import SelectConfig


def signal(auroc: float, samples: int = 100, half: float = 0.05) -> Signal:
    return Signal(samples, auroc, auroc - half, auroc + half, 0.2, 1 / 9, 0.1)


def config_of(words: list[str]) -> SelectConfig:
    parser = Parser()
    add_options(parser, SelectConfig)
    return SelectConfig(**{name: value for name, value in vars(parser.parse_args(words)).items() if value is not None})


def test_select_where_it_sees_and_leave_the_rest_whole() -> None:
    told = advice({"color": signal(0.9, 300), "how many": signal(0.52), "few": signal(0.7, 1, math.nan)}, "source")
    assert told[0].startswith("What to do: select by gain where the model sees, 75 % of the samples, AUROC 90.0 %")
    assert "elsewhere it is 52.0 to 70.0 %" in told[0]
    for line in told[1:3]:
        words = shlex.split(line.partition(": vig select ")[2])
        config = config_of([*words, "--scores", "runs/x", "--out", "runs/x"])
        assert config.quota == {"how many": 100.0, "few": 100.0} or config.within == ("source", "question", "answer")


def test_all_or_nothing_seen() -> None:
    (all_seen,) = advice({"a": signal(0.8), "b": signal(0.9)}, "source")
    assert "select by gain (--strategy vig or vig-samples); AUROC is 80.0 to 90.0 %" in all_seen
    (nothing,) = advice({"a": signal(0.5), "b": signal(0.51)}, "cluster")
    assert "don't select by gain" in nothing


def test_clusters_and_many_sources_are_ranked_within() -> None:
    clusters = advice({"0": signal(0.8), "1": signal(0.5)}, "cluster")
    assert not any("--quota" in line for line in clusters)
    assert any("--within cluster,answer" in line for line in clusters)
    many = {f"s{number}": signal(0.5) for number in range(20)} | {"seen": signal(0.9)}
    assert not any("--quota" in line for line in advice(many, "source"))
