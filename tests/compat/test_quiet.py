"""What packages log as they are imported is as vig_ray/compat/quiet.py takes it to be."""

from __future__ import annotations

import subprocess
import sys


def test_nothing_is_said_as_they_are_imported() -> None:
    code = "import vig_ray, logging; logging.basicConfig(); import peft, torchao.optim, bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    assert not done.stderr
