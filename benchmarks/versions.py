"""Versions of the packages that a result was found with."""

from __future__ import annotations

import functools
import subprocess
from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Return the version of an installed package, or "not installed"; a checkout that is run where
    it lies is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@functools.cache
def commit() -> str | None:
    """Return the last commit that changed the library; None where there is no repository."""
    try:
        words = ["git", "log", "-1", "--format=%h", "--", "blo", "adapters"]
        found = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
