"""`vig report` as a user runs it: the truth about the demo world, and everything in a bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command import call, refused
from tests.selection.made import write_selected
from vig_ray.demo import CHECKPOINT, world


@pytest.fixture(scope="module")
def told(held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("report") / "demo.html"
    done = call("report", "--scores", str(held_out), "--out", str(out))
    assert f"report: {out}" in done.stdout
    assert "vision-critical" in done.stdout
    found: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return found


def test_it_says_which_kinds_are_redundant_and_which_misaligned(told: dict[str, Any]) -> None:
    shares = {
        row["source"]: {name: group["share"] for name, group in row["groups"].items()}
        for row in told["sources"]
        if row["scored"]
    }
    print({source: {name: round(share, 3) for name, share in groups.items()} for source, groups in shares.items()})
    for kind in ("color", "place", "caption"):
        assert shares[kind]["vision-critical"] > 0.95
    assert shares["knowledge"]["redundant"] > 0.95
    assert shares["prior"]["redundant"] > 0.8
    assert shares["mismatched"]["misaligned"] > 0.95
    assert shares["partial"]["misaligned"] > 0.9
    text = next(row for row in told["sources"] if row["source"] == "text")
    assert (text["scored"], text["failed"]) == (0, 0)
    assert text["text_only"] > 0


def test_its_tokens_are_what_the_images_show(told: dict[str, Any]) -> None:
    shown = [*world.COLORS, *world.SHAPES, "Yes"]  # yes, there is a dot; that there is none, the prior says
    highest = told["tokens"]["highest"][: len(shown)]
    assert {row["text"] for row in highest} == set(shown)
    assert all(row["mean"] > 0.3 for row in highest)
    assert all(abs(row["mean"]) < 0.1 for row in told["tokens"]["lowest"])


def test_its_lowest_samples_are_the_wrong_ones(told: dict[str, Any], held_out: Path) -> None:
    kinds = [json.loads(line)["kind"] for line in (held_out / "data" / "truth.jsonl").read_text().splitlines()]
    lowest = [place["sample_key"] for place in told["gallery"]["groups"]["lowest"] if place["of_all"]]
    assert {kinds[int(key.rsplit("/", 1)[1])] for key in lowest} == {"mismatched"}


def test_the_demo_ends_by_writing_one(tmp_path: Path, local_ray: None) -> None:
    done = call("demo", "--out", str(tmp_path / "demo"), "--samples", "60")
    assert done.stdout.rstrip().endswith(f"report: {tmp_path}/demo/report.html")
    html = (tmp_path / "demo" / "report.html").read_text()
    assert "What the demo&#x27;s images contribute" in html
    assert html.count("data:image/jpeg;base64") > 20


def test_everything_in_a_bucket(s3: Callable[[], Any], tmp_path: Path, demo_model: Any, demo_formatter: Any) -> None:
    client = s3()
    client.create_bucket(Bucket="shown")
    write_selected(tmp_path, demo_model, demo_formatter, samples=80, p=60)
    images = {}
    for path in sorted((tmp_path / "samples").glob("*.parquet")):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for image in (image for row in rows for image in row["images"]):
            name = Path(image["uri"].removeprefix("file://"))
            images[name.name] = name
            image["uri"] = f"s3://shown/images/{name.name}"
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    for name, path in images.items():
        client.upload_file(str(path), "shown", f"images/{name}")
    for folder in ("samples", "scores", "selection"):
        client.upload_file(str(tmp_path / f"{folder}.stage.json"), "shown", f"run/{folder}.stage.json")
        for path in (tmp_path / folder).iterdir():
            client.upload_file(str(path), "shown", f"run/{folder}/{path.name}")
    call("report", "--scores", "s3://shown/run", "--out", "s3://shown/reports/r.html", "--model", CHECKPOINT)
    listed = {each["Key"] for each in client.list_objects_v2(Bucket="shown", Prefix="reports/")["Contents"]}
    assert {"reports/r.html", "reports/r.json", "reports/r-figures/tokens.svg"} <= listed
    html = client.get_object(Bucket="shown", Key="reports/r.html")["Body"].read().decode()
    assert html.count("data:image/jpeg;base64") > 40
    assert "can't be shown" not in html
    assert "The selection: vig, 60 %" in html


def test_wrong_options_are_one_line(held_out: Path, tmp_path: Path) -> None:
    for options, words in (
        (("--scores", str(tmp_path), "--out", "r.html"), "no scores here"),
        (("--scores", str(held_out), "--out", str(tmp_path / "r.pdf")), "name a file that ends in .html"),
        (("--scores", str(held_out), "--out", str(tmp_path / "r.html"), "--p", "0"), "--p"),
        (("--scores", str(held_out), "--out", str(tmp_path / "r.html"), "--selection", str(tmp_path)), "no selection"),
        (("--scores", str(held_out), "--out", str(held_out / "printed.txt" / "r.html")), "is a file"),
        (("--scores", str(held_out), "--out", str(tmp_path / "r.html"), "--tagger", "nosuch"), "--tagger nosuch"),
    ):
        assert words in refused("report", *options)
