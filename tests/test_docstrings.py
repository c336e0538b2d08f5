"""The examples in docstrings, and the public names."""

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import adapters
import blo


def module_names(package) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [package.__name__, *(module.name for module in found)]


def public_names(package) -> set[str]:
    """The names that a package offers, its modules left out."""
    return {
        name
        for name, item in vars(package).items()
        if not name.startswith("_")
        and not isinstance(item, ModuleType)
        and getattr(item, "__module__", "").partition(".")[0] == package.__name__
    }


@pytest.mark.parametrize("name", module_names(blo) + module_names(adapters))
def test_docstring_examples_print_what_they_say(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples in {name} differ"


def qualified_names() -> list[str]:
    """The public names of both packages."""
    return [f"{p.__name__}.{name}" for p in (blo, adapters) for name in sorted(public_names(p))]


@pytest.mark.parametrize("name", qualified_names())
def test_public_name_has_an_example_that_runs(name):
    package, _, short = name.partition(".")
    item = getattr(importlib.import_module(package), short)
    module = importlib.import_module(item.__module__)
    found = doctest.DocTestFinder(recurse=False).find(item, item.__name__, module)
    examples = [example for test in found for example in test.examples]
    assert examples, f"{name} has no example"
    assert not any(doctest.SKIP in example.options for example in examples)
    tested = {test.name for test in doctest.DocTestFinder().find(module)}
    assert f"{item.__module__}.{item.__qualname__}" in tested


def test_no_module_of_blo_shares_the_name_of_a_public_function():
    modules = {name.rpartition(".")[2] for name in module_names(blo) if name.count(".") == 1}
    assert modules.isdisjoint(public_names(blo))
