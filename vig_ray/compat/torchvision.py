"""torchvision's Python part beside a torch that its compiled part wasn't built for.

Image processors of transformers need its transforms, which are Python. But `import torchvision` ends in "operator
torchvision::nms does not exist" where its extension can't be loaded, as PyPI's wheel (built for CUDA) can't beside a
CPU build of torch, since it describes two operators of the extension that aren't there then. tests/compat/
test_torchvision.py fails where a release changes any of it.
"""

from __future__ import annotations

import importlib.abc
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

_declared: list[Any] = []  # operators exist as long as their library does


class _Mender(importlib.abc.MetaPathFinder):
    """Finds nothing; acts just before torchvision loads its extension, in whatever way it came to be imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:  # noqa: ARG002
        if fullname == "torchvision.extension" and path and not _declared:
            _declare_what_is_missing(next(iter(path)))


def make_importable() -> None:
    """Let `import torchvision` work in this process, from now on. Costs nothing where nobody imports it."""
    if not any(isinstance(finder, _Mender) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Mender())


def _declare_what_is_missing(folder: str) -> None:
    """Declare the operators that torchvision describes without asking whether its extension brought them.

    They have no code, so that detection models fail where they use them. Checked against torchvision 0.28.0.
    """
    import torch

    ops: Any = torch.ops
    Library: Any = torch.library.Library
    try:
        for name in os.listdir(folder):
            if name.startswith("_C.") and name.endswith((".so", ".pyd", ".dylib")):
                ops.load_library(os.path.join(folder, name))  # again by torchvision, which does nothing then
                return
    except OSError as error:
        log.info("torchvision goes without its compiled part, which vig-ray doesn't need: %s", error)
    library = Library("torchvision", "FRAGMENT")
    for name in (name for name in ("nms", "qnms") if not hasattr(ops.torchvision, name)):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
