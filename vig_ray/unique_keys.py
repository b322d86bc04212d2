"""YAML whose names are there once: of two entries with one name the first would be lost without a word."""

from __future__ import annotations

from typing import Any

import yaml


class TwiceError(yaml.YAMLError):
    """A mapping has a name twice. `line` counts from 1."""

    def __init__(self, line: int, name: object) -> None:
        super().__init__(f"line {line}: {name} is there twice")
        self.line = line


class UniqueKeyLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that raises TwiceError; for `yaml.load`."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises TwiceError."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1 and key != "<<"), None)
        if twice is not None:
            raise TwiceError(node.start_mark.line + 1, twice)
        return super().construct_mapping(node, deep)
