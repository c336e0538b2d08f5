"""Versions of the packages that a result was found with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Return the version of an installed package, or "not installed"; a checkout that is run where
    it lies is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
