"""Nothing private of the libraries is used outside vig_ray/compat. Reads the sources, runs nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPAT = ROOT / "vig_ray" / "compat"
LIBRARIES = ("ray", "vllm", "transformers", "datasets", "torchao", "bitsandbytes")

# Packages that no library calls public, though their names have no underscore.
INSIDE = (
    "vllm.v1",
    "vllm.multimodal",
    "vllm.inputs",
    "vllm.model_executor",
    "transformers.models",
    "datasets.data_files",
    "datasets.utils",
    "ray.dashboard",
    "ray.train.v2",
    "torchao.optim.subclass_8bit",
)

# Names of attributes, methods and arguments that have moved to vig_ray/compat.
NAMES = frozenset({
    "_global_node", "print_to_stdstream", "_metrics_export_port", "FilenameProvider", "worker_failures",
    "get_preemption_info", "_create_default_callbacks", "_initialize_and_run_controller",
    "__serve_build_asgi_app__", "RayParams", "no_monitor", "start_api_server",
    "_get_mm_fields_config", "get_mm_processor", "outputs_queue", "engine_dead", "hf_to_vllm_mapper",
    "use_v2_model_runner", "is_mm_prefix_lm",
    "_new_buffer", "OptimState8bit", "support_avx512bf16_for_cpu",
    "valid_processor_kwargs", "_merge_kwargs", "_process_images", "_prefill", "_update_model_kwargs_for_generation",
})  # fmt: skip

# Parts of strings by which the inside of a library is known.
MARKS = (
    ".pending.parquet", "ray::", "The above exception was", "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS",
    "RAY_worker_maximum_startup_concurrency",
)  # fmt: skip


def inside(module: str) -> bool:
    """Whether a dotted name lies inside one of the libraries."""
    first, *rest = module.split(".")
    return first in LIBRARIES and (
        any(part.startswith("_") and not part.endswith("__") for part in rest)
        or any(module == package or module.startswith(f"{package}.") for package in INSIDE)
    )


def dotted(node: ast.expr) -> str:
    """`a.b.c` as it is written; "" for what is no such name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def private_uses(source: str) -> Iterator[tuple[int, str]]:
    """The line and the name of each private thing that a source uses."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used = [alias.name for alias in node.names if inside(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            imported = [f"{module}.{alias.name}" for alias in node.names]
            used = [name for name in imported if inside(name) or name.rpartition(".")[2] in NAMES]
        elif isinstance(node, ast.Attribute):
            used = [node.attr] if node.attr in NAMES else [name for name in [dotted(node)] if inside(name)]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            used = [node.name] if node.name in NAMES else []
        elif isinstance(node, ast.keyword):
            used = [node.arg] if node.arg in NAMES else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            marks = [mark for mark in MARKS if mark in node.value]
            used = [node.value] if node.value in NAMES or inside(node.value) else marks
        else:
            continue
        yield from ((getattr(node, "lineno", 0), name) for name in used)


def test_private_things_are_used_in_compat_alone() -> None:
    files = [file for folder in ("vig_ray", "serve_app", "jobs") for file in sorted((ROOT / folder).rglob("*.py"))]
    uses = [
        f"{file.relative_to(ROOT)}:{line} uses {name}: put it into vig_ray/compat, with a test in tests/compat"
        for file in files
        if COMPAT not in file.parents
        for line, name in private_uses(file.read_text(encoding="utf-8"))
    ]
    assert not uses, "\n".join(uses)


def test_compat_still_uses_what_is_kept_from_the_others() -> None:
    """A name that it has no use for any more goes from the lists above."""
    used = {name for file in COMPAT.glob("*.py") for _, name in private_uses(file.read_text(encoding="utf-8"))}
    unused = [name for name in (*NAMES, *MARKS) if not any(name in each.split(".") or name == each for each in used)]
    assert not unused, f"no longer used by vig_ray/compat: {unused}"


def test_the_reader_sees_every_kind_of_use() -> None:
    lines = {
        "from ray._private import worker": ["ray._private.worker"],
        "import ray.data._internal.stats": ["ray.data._internal.stats"],
        "from ray import _raylet": ["ray._raylet"],
        "from vllm.v1.engine.exceptions import EngineDeadError": ["vllm.v1.engine.exceptions.EngineDeadError"],
        "import transformers.models.llava": ["transformers.models.llava"],
        "from ray.data.datasource import FilenameProvider": ["ray.data.datasource.FilenameProvider"],
        "ray._private.worker": ["ray._private.worker", "ray._private"],
        "logging.getLogger('ray._private.runtime_env')": ["ray._private.runtime_env"],
        "engine.core.outputs_queue.put(1)": ["outputs_queue"],
        "getattr(core, 'engine_dead', False)": ["engine_dead"],
        "ray.init(_metrics_export_port=1)": ["_metrics_export_port"],
        "def __serve_build_asgi_app__(self): ...": ["__serve_build_asgi_app__"],
        "path.endswith('.pending.parquet')": [".pending.parquet"],
        "f'ray::{name}'": ["ray::"],
        "'''Of ray:: in a docstring.'''": [],
        "import ray.data, vllm, transformers": [],
        "from vllm import SamplingParams, __version__": [],
        "self._private = distributed.ray._private": [],
    }
    for line, names in lines.items():
        assert [name for _, name in private_uses(line)] == names, line
