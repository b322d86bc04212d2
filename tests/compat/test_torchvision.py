"""torchvision is as vig_ray/compat/torchvision.py takes it to be. What fails here names what a release has changed."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)


def test_its_transforms_work_whatever_torch_it_was_built_for() -> None:
    """In a fresh process, since an import that failed leaves halves behind."""
    done = run(
        "import vig_ray, torch, transformers, torchvision.transforms.v2.functional as F\n"
        "print(F.resize(torch.zeros(3, 8, 8), [4, 4]).shape, transformers.utils.is_torchvision_available())"
    )
    assert done.stdout.strip() == "torch.Size([3, 4, 4]) True", done.stderr


def test_nothing_is_imported_before_it_is_needed() -> None:
    done = run("import sys, vig_ray; print([name for name in ('torch', 'torchvision') if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_operators_are_still_what_is_missing() -> None:
    """Where this fails, torchvision can be imported without its extension, or needs more than two operators."""
    done = run("import torchvision.extension as e; print(e._has_ops())")
    if done.stdout.strip() == "True":  # built for this torch: there is nothing to mend
        return
    assert "operator torchvision::nms does not exist" in done.stderr
