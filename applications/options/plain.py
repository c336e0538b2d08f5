"""Parsers whose errors are exceptions, so that commands and callers see the same ones."""

import argparse
from typing import NoReturn

from applications.errors import UsageError


class Raising:
    """What a parser does with an error, before the class of the library among its bases."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage of all options and leaving the process."""
        raise UsageError(message)


class Parser(Raising, argparse.ArgumentParser):
    """The parser of a command with options of its own alone."""
