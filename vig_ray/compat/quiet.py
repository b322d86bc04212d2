"""Imports of packages that say, each time and on every machine, which of their parts are for other machines."""

from __future__ import annotations

import importlib
import importlib.util
import logging


def import_quietly(*packages: str) -> None:
    """Import what is installed of `packages`, without their warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        for package in packages:
            if importlib.util.find_spec(package) is not None:
                importlib.import_module(package)
    finally:
        logging.disable(before)
