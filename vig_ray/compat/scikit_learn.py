"""transformers without the scikit-learn that it imports for one function of assisted generation.

Where scikit-learn is installed, importing it (with SciPy's statistics and pandas) takes as long as importing
transformers itself, in every process that holds a model or a processor. tests/compat/test_scikit_learn.py fails where a
release changes any of it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_IMPORTER = "transformers.generation.candidate_generator"


class _Loader(importlib.abc.Loader):
    """Runs the module as the loader that it has from its file does, with scikit-learn said to be missing meanwhile."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        utils: Any = importlib.import_module("transformers.utils")
        is_available = getattr(utils, "is_sklearn_available", None)
        if is_available is None:
            self._loader.exec_module(module)
            return
        utils.is_sklearn_available = lambda: False
        try:
            self._loader.exec_module(module)
        finally:
            utils.is_sklearn_available = is_available
        vars(module).update(is_sklearn_available=is_available, roc_curve=_roc_curve)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _IMPORTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def import_when_called() -> None:
    """From now on transformers imports scikit-learn's `roc_curve` when it is called. Checked against transformers
    5.19.0."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _roc_curve(*arguments: Any, **options: Any) -> Any:
    from sklearn.metrics import roc_curve

    return roc_curve(*arguments, **options)
