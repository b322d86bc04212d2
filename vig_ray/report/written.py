"""The files of a report, in place of an earlier one: the page, its numbers as JSON, and its figures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vig_ray.errors import StageError
from vig_ray.report import render
from vig_ray.report.document import MARK
from vig_ray.report.figures import WIDE, Rendered
from vig_ray.report.numbers import WRITER
from vig_ray.stage import Claim, StageConfig, claim
from vig_ray.storage import check_writable, exists, join, read_bytes, write_bytes

Json = dict[str, Any]
MEGABYTE = 10**6
_SUFFIXES = (".json", ".svg", ".png", "-narrow.svg", "-narrow.png")  # of a figure's files


@dataclass(frozen=True)
class Written:
    """The files that were written, and what they say. `lines`: for a person, before the files' names. `shown`,
    `left_out`: cards with samples or answers."""

    out: str
    size: int
    figures: str | None
    numbers: Json
    lines: tuple[str, ...]
    shown: int
    left_out: int

    def text(self) -> str:
        """For a person."""
        lines = [*self.lines]
        if self.left_out:
            lines.append(f"{self.left_out} of {self.shown} cards of the gallery left out: --max-mb")
        lines.append(f"report: {self.out} ({self.size / MEGABYTE:.1f} MB); numbers: {json_name(self.out)}")
        if self.figures:
            lines.append(f"figures: {self.figures}/*.svg, *.png, *.json")
        return "\n".join(lines)


def json_name(out: str) -> str:
    """Where the numbers go."""
    return f"{out.removesuffix('.html')}.json"


def _folder(out: str) -> str:
    return f"{out.removesuffix('.html')}-figures"


def check_out(out: str) -> None:
    """Raise StageError where a report can't be written to `out`, or something else lies there."""
    if not out.endswith(".html"):
        raise StageError(f"--out {out}: name a file that ends in .html")
    for name, mark in ((out, MARK), (json_name(out), WRITER.encode())):
        kind = exists(name).name
        if kind == "Directory":
            raise StageError(f"--out {out}: {name} is a folder; choose another name")
        if kind == "File" and mark not in read_bytes(name)[:2000]:
            raise StageError(f"--out {out}: {name} exists and is no report's; choose another name")
    if exists(_folder(out)).name == "File":
        raise StageError(f"--out {out}: {_folder(out)} is a file; choose another name")
    check_writable(out.rpartition("/")[0] or ".")


def claim_report(out: str, figures: Sequence[str]) -> Claim:
    """The files of a report with figures of these names."""
    folder, beside = os.path.basename(_folder(out)), os.path.basename(out)
    drawn = [f"{folder}/{name}{suffix}" for name in figures for suffix in _SUFFIXES]
    files = [beside, json_name(beside), *drawn]
    return claim(out, "report", {}, overwrite=True, folders=(), files=files, resumes=False, again=True)


def write_report(
    config: StageConfig, out: str, output: Claim, html: str, contents: Json, figures: Sequence[Rendered] | None
) -> tuple[int, str | None]:
    """Write the page, the numbers and, unless they are None, the figures; the page's size in bytes, and the folder of
    the figures."""
    output.begin(config)
    write_bytes(out, html.encode())
    write_bytes(json_name(out), (json.dumps(contents, indent=1, ensure_ascii=False) + "\n").encode())
    folder = _folder(out) if figures is not None else None
    for drawing in figures or ():
        name = join(str(folder), drawing.figure.name)
        for image, suffix in ((drawing.wide, ""), (drawing.narrow, "-narrow")):
            if image is not None:
                write_bytes(f"{name}{suffix}.svg", image.encode())
                write_bytes(f"{name}{suffix}.png", render.to_png(image))
        write_bytes(f"{name}.json", json.dumps(drawing.figure.spec(WIDE), indent=1, ensure_ascii=False).encode())
    output.commit(config)
    return len(html.encode()), folder


def left_out_html(count: int, shown: int, megabytes: float) -> str:
    """What a page says of cards that it has no room for."""
    if not count:
        return ""
    return (
        f'<p class="warning">{count} of {shown} cards are left out, to keep this file below {megabytes:g} MB '
        "(--max-mb).</p>"
    )
