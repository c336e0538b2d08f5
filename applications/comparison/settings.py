"""Options of a run as a mapping: which were given, and what the application makes of them."""

from argparse import ArgumentError, Namespace
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from applications.errors import UsageError
from applications.options.command_line import names_of, parse_options, parser, words
from applications.options.commands import COMMANDS
from applications.options.completion import completed

EVERY = {name: group for each in COMMANDS.values() for name, group in each.groups.items()}
PRESET = "preset"
DRY_RUN = "dry_run"
NAMES = (*names_of(EVERY), PRESET, DRY_RUN)

# What the grid itself decides, with the remedy for those who set it as an option.
DECIDED = {
    "seed": "seeds",
    "max_train_samples": "train_sizes",
    "output_dir": "--out",
    "resume": "nothing, runs are always resumed",
    DRY_RUN: "--dry_run of the grid's own command",
}
NOT_GIVEN = object()


def near(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one, or all of them."""
    names = [str(other) for other in known]
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names) or 'none'}"


def check_command(command: str, place: str) -> str:
    """The command, if there is such an application.

    Raises:
        UsageError: there is none.
    """
    if command not in COMMANDS:
        raise UsageError(f"{place}: unknown command {command!r}: {near(command, COMMANDS)}")
    if find_spec(f"applications.{command}") is None:
        raise UsageError(f"{place}: applications.{command} is not installed")
    return command


def given(flags: Sequence[str], place: str) -> dict[str, Any]:
    """The options that ``flags`` set, by their full names, with values of the right types.

    Options that only some applications have are known here; `resolved` refuses them elsewhere.

    Args:
        flags: words of a command line.
        place: where they come from, for messages.

    Raises:
        UsageError: an unknown flag (with the nearest name), a value of the wrong type, or an option
            that the grid decides.
    """
    empty = Namespace(**dict.fromkeys([*NAMES, "configuration"], NOT_GIVEN))
    try:
        found, unknown = parser(EVERY).parse_known_args(list(flags), empty)
    except (UsageError, ArgumentError) as error:
        raise UsageError(f"{place}: {error}") from error
    if unknown:
        word = str(unknown[0]).partition("=")[0]
        raise UsageError(f"{place}: unknown option {word!r}: {nearest(word)}")
    if found.configuration is not NOT_GIVEN and found.configuration is not None:
        raise UsageError(f"{place}: unexpected word {found.configuration!r}")
    values = {
        name: value
        for name, value in vars(found).items()
        if value is not NOT_GIVEN and name != "configuration"
    }
    for name, remedy in DECIDED.items():
        if name in values:
            raise UsageError(f"{place}: option {name!r} is decided by the grid; use {remedy}")
    return values


def nearest(word: str) -> str:
    """A remedy for an unknown option."""
    name = word.lstrip("-").replace("-", "_")
    close = get_close_matches(name, NAMES, n=1)
    return f"did you mean {close[0]}?" if close else "the application's --help lists the options"


def checked(values: Any, place: str) -> dict[str, Any]:
    """The options in a mapping of a grid file; None takes an option of a lower rank back.

    Values go through the parser of the command line, so that the ``1e-2`` that YAML takes for a
    text is a number and other spellings (``model``, ``task``) get their full names.

    Raises:
        UsageError: as `given`, or not a mapping.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise UsageError(f"{place}: must be a mapping of options, got {values!r}")
    result: dict[str, Any] = {}
    for name, value in values.items():
        if value is not None:
            result |= given(words({str(name): value}), place)
        elif name in NAMES:
            result[str(name)] = None
        else:
            raise UsageError(f"{place}: unknown option {name!r}: {nearest(str(name))}")
    return result


def resolved(command: str, options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """All options of a run, as the application understands the given ones.

    Raises:
        UsageError: they are refused; ``place`` says which run it is.
    """
    try:
        parsed = parse_options(words(options), groups=COMMANDS[command].groups)
        whole = completed(parsed, COMMANDS[command]).as_dict()
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    if all(whole[name] is None for name in ("task_name", "data_dir", "train_file")):
        raise UsageError(f"{place}: no data: give task_name, data_dir or train_file")
    return whole
