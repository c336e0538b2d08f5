"""The examples in docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import adapters
import blo


def module_names(package) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [package.__name__, *(module.name for module in found)]


MODULES = module_names(blo) + module_names(adapters)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_what_they_say(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples in {name} differ"
