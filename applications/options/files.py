"""Files of settings, read strictly: a key that is there twice would silently count once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from applications.errors import UsageError


def read_settings(path: Path, what: str) -> Any:
    """What a json or yaml file holds.

    Args:
        path: the file; json where it ends in ``.json``.
        what: the kind of file, for messages: ``configuration file``.

    Raises:
        UsageError: it cannot be read, or a key is there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=unrepeated)
        return yaml.load(text, Loader=Strict)  # a SafeLoader: no objects are made
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{what} {str(path)!r} cannot be read: {why}") from error


def unrepeated(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """The mapping of the pairs.

    Raises:
        ValueError: a key is there twice.
    """
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} is there twice")
        found[name] = value
    return found


class Strict(yaml.SafeLoader):  # type: ignore[misc]
    """A SafeLoader that refuses a key that is there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; keys that ``<<`` brings in may be there twice."""
        written = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        names = [self.construct_object(key, deep=True) for key in written]
        unrepeated([(name, None) for name in names if isinstance(name, str | int | float)])
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found
