"""transformers imports scikit-learn as vig_ray/compat/scikit_learn.py takes it to."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_is_imported_when_it_is_called_and_not_before() -> None:
    printed = run(
        "import vig_ray, sys\n"
        "from transformers import AutoModelForCausalLM, AutoProcessor\n"
        "from transformers.generation import candidate_generator as module\n"
        "print('sklearn' in sys.modules, module.is_sklearn_available())\n"
        "print([each.tolist() for each in module.roc_curve([0, 1], [0.1, 0.9])][:2], 'sklearn' in sys.modules)"
    )
    assert printed.splitlines() == ["False True", "[[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]] True"]


def test_transformers_still_imports_it_by_itself() -> None:
    """Where this fails, the module can go."""
    assert (
        run("import sys; import transformers.generation.candidate_generator; print('sklearn' in sys.modules)") == "True"
    )
