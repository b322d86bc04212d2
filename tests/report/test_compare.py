"""`vig compare` against scipy, sorting, and what `vig select` keeps of each run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.selection.made import made_up, renamed, selected, write
from vig_ray.errors import StageError
from vig_ray.report import compare
from vig_ray.report.compare import CompareConfig
from vig_ray.selection import job
from vig_ray.selection.config import SelectConfig


def changed(rows: list[dict[str, Any]], noise: float, seed: int) -> list[dict[str, Any]]:
    """The same samples in another order, their gains moved, rounded so that some are equal, and a few not scored."""
    rng = np.random.default_rng(seed)
    found = copy.deepcopy(rows)
    for row in found:
        if row["vig"] is not None:
            row["vig"] = round(row["vig"] + noise * rng.normal(), 1)
            row["blur_loss"] = row["clean_loss"] + row["vig"]
            if rng.random() < 0.05:
                row |= {"vig": None, "error": "TooLong: made up"}
    return [found[number] for number in rng.permutation(len(found))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list[Any], list[Any]]:
    a = made_up(900, seed=5)
    b = changed(a, 0.4, 6)
    folder = tmp_path_factory.mktemp("runs")
    of_b = write(folder / "b", renamed(b, "blind"), files=3, references=["blind"])
    return write(folder / "a", a, files=4), of_b, a, b


def gains(rows: list[Any]) -> dict[str, float]:
    return {row["sample_key"]: row["vig"] for row in rows if row["vig"] is not None}


def test_the_figures_are_those_of_scipy_and_sorting(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_BATCH", 64)
    a, b, rows_a, rows_b = runs
    found = compare.run(CompareConfig(a=a, b=b, differing=7))
    mine, other = gains(rows_a), gains(rows_b)
    common = sorted(set(mine) & set(other))
    assert (found.common, found.only_a, found.only_b) == (len(common), len(mine) - len(common), 0)
    x, y = np.array([mine[key] for key in common]), np.array([other[key] for key in common])
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert found.means == pytest.approx((x.mean(), y.mean()))
    assert found.same_sign == pytest.approx(np.mean((x > 0) == (y > 0)))
    assert found.differ == {"reference": ("blur", "blind")}
    ranks = [{key: stats.percentileofscore(v, dict(zip(common, v, strict=True))[key], "mean") for key in common}
             for v in (x, y)]  # fmt: skip
    apart = sorted(common, key=lambda key: -abs(ranks[0][key] - ranks[1][key]))
    least = abs(ranks[0][apart[6]] - ranks[1][apart[6]])
    source = {row["sample_key"]: row["source"] for row in rows_a}
    assert len(found.most_differing) == 7
    for each in found.most_differing:
        key = each.sample_key
        assert (each.vig_a, each.vig_b, each.source) == (mine[key], other[key], source[key])
        assert abs(each.rank_a - each.rank_b) >= least - 1e-9
        assert each.rank_a == pytest.approx(ranks[0][key], abs=100 / len(common))


def test_the_sets_are_those_that_select_keeps(runs: Any, tmp_path: Path) -> None:
    """Both runs without the samples that only one scored."""
    _, _, rows_a, rows_b = runs
    both = set(gains(rows_a)) & set(gains(rows_b))
    folders = []
    for name, rows in (("a", rows_a), ("b", rows_b)):
        folders.append(write(tmp_path / name, [row for row in rows if row["sample_key"] in both]))
    found = compare.run(CompareConfig(a=folders[0], b=folders[1], p="20,55.5,100"))
    assert [each.p for each in found.agreements] == [20, 55.5, 100]
    for each in found.agreements:
        kept = []
        for folder in folders:
            out = tmp_path / f"{Path(folder).name}-{each.p}"
            job.run(SelectConfig(scores=folder, out=str(out), strategy="vig-samples", p=each.p))
            kept.append({row["sample_key"] for row in selected(out)})
        assert (each.a, each.b, each.both) == (len(kept[0]), len(kept[1]), len(kept[0] & kept[1]))
        n, agree = len(both), len(both) - len(kept[0] ^ kept[1])
        chance = (each.a * each.b + (n - each.a) * (n - each.b)) / n**2
        assert each.kappa == pytest.approx((agree / n - chance) / (1 - chance) if chance < 1 else 1.0)


def test_a_run_and_itself(runs: Any) -> None:
    found = compare.run(CompareConfig(a=runs[0], b=runs[0]))
    assert found.spearman == pytest.approx(1)
    assert all(each.a == each.b == each.both for each in found.agreements)
    assert all(each.kappa == 1 for each in found.agreements)
    assert found.differ == {}


def test_tables_and_json_say_the_same(runs: Any) -> None:
    told = json.loads(compare.run(CompareConfig(a=runs[0], b=runs[1], as_json=True)).text())
    text = compare.run(CompareConfig(a=runs[0], b=runs[1])).text()
    assert f"{told['spearman']:.4f}" in text
    assert all(each["sample_key"] in text for each in told["most_differing"])
    assert "reference: blur | blind" in text


def test_what_cannot_be_compared_is_one_line(runs: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no scores here"):
        compare.run(CompareConfig(a=runs[0], b=str(tmp_path)))
    others = [row | {"sample_key": f"other/{row['sample_key']}"} for row in runs[2]]
    with pytest.raises(StageError, match="of the same dataset"):
        compare.run(CompareConfig(a=runs[0], b=write(tmp_path / "other", others)))
    unscored = [row | {"vig": None} for row in runs[2]]
    with pytest.raises(StageError, match="no sample has a score"):
        compare.run(CompareConfig(a=runs[0], b=write(tmp_path / "unscored", unscored)))
    constant = [row | {"vig": None if row["vig"] is None else 1.0} for row in runs[2]]
    found = compare.run(CompareConfig(a=runs[0], b=write(tmp_path / "constant", constant)))
    assert found.spearman is None
    assert "not defined" in found.text()
