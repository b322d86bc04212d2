"""No circle of imports between files, no import from a folder to one above it: read from the sources, nothing is run.

Imports inside functions and for type checking count as well: they too say who knows whom.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the ground up. A file may import from its own folder and from the floors below, not from beside or above.
FLOORS: tuple[set[str], ...] = (
    # Before whatever imports transformers.
    {"vig_ray.compat.torchvision", "vig_ray.compat.scikit_learn", "vig_ray.compat.quiet"},
    {"vig_ray"},
    {"vig_ray.terminal", "vig_ray.unique_keys"},
    {"vig_ray.addresses", "vig_ray.errors", "vig_ray.progress"},
    {"vig_ray.storage"},
    {"vig_ray.hub"},
    {"vig_ray.compat"},
    {"vig_ray.owned_files"},
    {"vig_ray.stage", "vig_ray.whole_files", "vig_ray.options", "vig_ray.processes"},
    {"vig_ray.cluster"},
    {"vig_ray.dataset"},
    {"vig_ray.client"},
    {"vig_ray.tables"},
    {"vig_ray.model"},
    {"vig_ray.row_counter", "vig_ray.this_process"},
    {"vig_ray.pipeline"},
    {"vig_ray.scoring"},
    {"vig_ray.measuring"},
    {"vig_ray.evaluation"},
    {"vig_ray.selection"},
    {"vig_ray.audit"},
    {"vig_ray.training"},
    {"vig_ray.integrations"},
    {"vig_ray.report"},
    {"vig_ray.push"},
    {"vig_ray.demo"},
    {"vig_ray.submission", "vig_ray.arguments"},
    {"vig_ray.results"},
    {"vig_ray.api"},
    {"vig_ray.cli"},
    {"vig_ray.study"},
    {"serve_app", "jobs"},
    {"benchmarks"},
    {"studies"},
)
FLOOR_OF = {unit: number for number, units in enumerate(FLOORS) for unit in units}


def modules() -> dict[str, Path]:
    """Every module of the packages and scripts by its dotted name."""
    files = [
        file
        for folder in ("vig_ray", "serve_app", "jobs", "benchmarks", "studies")
        for file in (ROOT / folder).rglob("*.py")
    ]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(source: str, names: set[str]) -> Iterator[tuple[int, str]]:
    """The line and the name of each of these modules that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"line {node.lineno}: an import relative to the file's own folder"
            assert not node.level, f"line {node.lineno}: an import relative to the file's own folder"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [submodule if submodule in names else node.module for submodule in submodules]
        else:
            continue
        yield from ((node.lineno, target) for target in targets if target in names)


def imports() -> dict[str, dict[str, int]]:
    """For each module, the modules it imports and the first line that does."""
    files = modules()
    found: dict[str, dict[str, int]] = {}
    for name, file in files.items():
        found[name] = {}
        for line, target in imported(file.read_text(encoding="utf-8"), set(files)):
            if target != name:
                found[name].setdefault(target, line)
    return found


def circles(graph: dict[str, dict[str, int]]) -> list[set[str]]:
    """The groups of modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting.extend(graph[module])
        reached[start] = seen
    groups: list[set[str]] = []
    for module, seen in reached.items():
        if module in seen and not any(module in group for group in groups):
            groups.append({other for other in seen if module in reached[other]})
    return groups


def unit_of(module: str) -> str:
    """The folder of a module in vig_ray, or the file at its top; the package for all others."""
    if module in FLOOR_OF:
        return module
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "vig_ray" else parts[0]


def test_no_circle_of_imports_between_files() -> None:
    assert not [sorted(group) for group in circles(imports())]


def test_every_file_has_a_floor() -> None:
    assert {unit_of(module) for module in modules()} <= FLOOR_OF.keys()


def test_imports_go_down() -> None:
    upward = [
        f"{module.replace('.', '/')}.py:{line} imports {target}"
        for module, targets in imports().items()
        for target, line in targets.items()
        if unit_of(module) != unit_of(target) and FLOOR_OF[unit_of(target)] >= FLOOR_OF[unit_of(module)]
    ]
    assert not upward


def test_the_reader_sees_imports_wherever_they_stand() -> None:
    source = (
        "from typing import TYPE_CHECKING\nimport a.b\nfrom a import c, name\n"
        "if TYPE_CHECKING:\n    from a.d import T\ndef f():\n    from a.e import g\n"
    )
    names = {"a", "a.b", "a.c", "a.d", "a.e"}
    assert list(imported(source, names)) == [(2, "a.b"), (3, "a.c"), (3, "a"), (5, "a.d"), (7, "a.e")]
    assert circles({"a": {"b": 1}, "b": {"c": 1}, "c": {"b": 1, "d": 1}, "d": {}}) == [{"b", "c"}]
