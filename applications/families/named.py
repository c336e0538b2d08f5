"""The families by the name of their command."""

from collections.abc import Mapping
from importlib import import_module

from applications.families.family import Family

FAMILIES: Mapping[str, tuple[str, str]] = {
    "nlu": ("classification", "TextClassification"),
    "token_classification": ("tagging", "TokenClassification"),
    "nlg": ("generation", "TextGeneration"),
}
"""The module and the class of each."""


def family_of(command: str) -> Family:
    """The family of a command: ``nlu``."""
    module, name = FAMILIES[command]
    made: Family = getattr(import_module(f"applications.families.{module}"), name)()
    return made
