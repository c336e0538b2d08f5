"""The versions of the packages that make the numbers."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "peft", "transformers", "blo-torch")


def versions() -> dict[str, str]:
    """The installed versions, found without importing the packages."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def told(command: str | None = None) -> str:
    """What ``--version`` prints; ``python -m blo`` tells more of the machine."""
    found = ", ".join(f"{name} {number}" for name, number in reversed(versions().items()))
    return found if command is None else f"{command}: {found}"
