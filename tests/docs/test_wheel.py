"""What `pip install` of the wheel gives, in an environment that has the dependencies and nothing of this checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

pytestmark = pytest.mark.cluster  # the demo starts a Ray of its own
_PARTS = ("pyproject.toml", "README.md", "LICENSE", "vig_ray", "serve_app")
_NUMBER = re.compile(r"[+-]\d+\.\d+")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy, since building leaves folders behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in _PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source)
    (built,) = out.glob("*.whl")
    return built


def _run(*command: object, cwd: Path | None = None) -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_RUNTIME_", "VIG_"))
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(archive.read(name) for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "vig_ray", "serve_app"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert packed == set(tracked.stdout.split())
    assert "vig_ray/demo/checkpoint/model.safetensors" in packed
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() in metadata.decode()


def test_the_demo_runs_from_the_wheel_alone_and_prints_what_the_readme_shows(wheel: Path, tmp_path: Path) -> None:
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    venv.EnvBuilder(with_pip=False).create(environment)
    python = environment / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    # The dependencies, which pip would take minutes to install again. A folder named in a .pth file is searched for
    # modules, but its own .pth files aren't read, so an editable install of this checkout stays out.
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    paths = sysconfig.get_paths()
    (site / "dependencies.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    where = _run(python, "-c", "import serve_app, vig_ray; print(vig_ray.__file__, serve_app.__file__)", cwd=empty)
    assert all(Path(file).is_relative_to(environment) for file in where.split())
    vig = environment / "bin" / "vig"
    assert "score samples over HTTP" in _run(vig, "--help", cwd=empty)
    printed = _run(vig, "demo", "--out", empty / "demo-out", cwd=empty).replace(f"{empty}/", "")
    assert (empty / "demo-out" / "report.html").stat().st_size > 100_000
    _assert_same_but_for_the_last_digit(_parts(printed), _parts(_shown_in_readme()))


def _shown_in_readme() -> str:
    """The block after `make demo`."""
    found = blocks(ROOT / "README.md")
    index = next(index for index, block in enumerate(found) if block.mark == "make" and "make demo" in block.text)
    return next(block.text for block in found[index + 1 :] if block.language == "text")


def _parts(text: str) -> list[str]:
    """The gain of each kind of sample, the tokens of the highest gain, and the counts.

    Without the tokens of the lowest gain: some differ in the fifth digit, and their order may be another elsewhere.
    """
    lines = [line.rstrip() for line in text.strip().splitlines()]
    begin = next(index for index, line in enumerate(lines) if line.startswith("mean gain by kind"))
    return [line[:26] if re.match(r" +[+-]\d.* [+-]\d", line) else line for line in lines[begin:]]


def _assert_same_but_for_the_last_digit(printed: list[str], shown: list[str]) -> None:
    assert [_NUMBER.sub("N", line) for line in printed] == [_NUMBER.sub("N", line) for line in shown]
    numbers = [[float(number) for line in lines for number in _NUMBER.findall(line)] for lines in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.0021)
