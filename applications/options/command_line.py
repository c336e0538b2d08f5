"""From the words of a command line, or a configuration file, to the options of a run."""

import dataclasses
from argparse import Action, ArgumentDefaultsHelpFormatter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType

from applications.errors import UsageError
from applications.options.arguments import (
    AdapterOptions,
    DataOptions,
    LevelOptions,
    ModelOptions,
    Options,
    RunOptions,
)
from applications.options.files import read_settings
from applications.options.plain import Raising
from applications.options.presets import paper_settings
from applications.options.versions import told

GROUPS: Mapping[str, type] = {
    "model": ModelOptions,
    "data": DataOptions,
    "adapter": AdapterOptions,
    "levels": LevelOptions,
    "run": RunOptions,
}
CONFIGURATION_SUFFIXES = (".json", ".yaml", ".yml")
NO_PRESETS: Mapping[str, Any] = {}


class Formatter(ArgumentDefaultsHelpFormatter):
    """Shows one spelling of a flag (hyphens work too), and a default where there is one."""

    def add_argument(self, action: Action) -> None:
        """Leave out the flag ``--no_X`` that HfArgumentParser adds to every ``--X`` that is on."""
        if f"--no_{action.dest}" not in action.option_strings:
            super().add_argument(action)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        value = f" {self._format_args(action, self._value(action))}" if action.nargs != 0 else ""
        return ", ".join(names) + value

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _value(self, action: Action) -> str:
        choices = action.choices
        return "{" + ",".join(map(str, choices)) + "}" if choices else "VALUE"


class Parser(Raising, HfArgumentParser):
    """The parser of groups of options."""


def parser(
    groups: Mapping[str, type] = GROUPS, description: str = "", prog: str | None = None
) -> Parser:
    """The parser of the groups of options."""
    made = Parser(
        [DataClassType(group) for group in groups.values()],
        description=description,
        prog=prog,
        usage="%(prog)s [FILE.json | FILE.yaml] [--OPTION VALUE ...]",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--preset",
        choices=["paper"],
        help="the settings that the paper of the method published for the model and task; other "
        "flags override them",
    )
    made.add_argument(
        "--dry_run",
        action="store_true",
        help="train and write nothing: say what the run would take, phase by phase",
    )
    made.add_argument("--version", action="version", version=told(prog))
    made.add_argument(
        "configuration",
        nargs="?",
        help="json or yaml file of options, such as the config.json of a run; flags override it",
    )
    return made


def words(values: Mapping[str, Any]) -> list[str]:
    """The command line that says the same as a dictionary of options; None is left out."""
    result: list[str] = []
    for name, value in values.items():
        if isinstance(value, list | tuple):
            result += [f"--{name}", *map(str, value)]
        elif value is not None:
            result.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return result


def names_of(groups: Mapping[str, type]) -> list[str]:
    """The names of all options."""
    return [field.name for group in groups.values() for field in dataclasses.fields(group)]


def read_configuration(path: Path, groups: Mapping[str, type] = GROUPS) -> dict[str, Any]:
    """The options in a json or yaml file; every key must be the name of an option."""
    values = read_settings(path, "configuration file")
    if not isinstance(values, dict):
        raise UsageError(f"configuration file {str(path)!r} must hold one mapping of options")
    unknown = sorted(set(values) - set(names_of(groups)))
    if unknown:
        raise UsageError(f"configuration file {str(path)!r} has unknown options {unknown}")
    return values


def parse_options(
    arguments: Sequence[str] = (),
    *,
    presets: Mapping[str, Any] = NO_PRESETS,
    groups: Mapping[str, type] = GROUPS,
    description: str = "",
    prog: str | None = None,
) -> Options:
    """The options that ``arguments`` ask for.

    What comes later counts: the defaults, ``presets``, the published settings that ``--preset``
    asks for, the configuration file (the first word, if it ends in .json, .yaml or .yml), the
    flags.

    Args:
        arguments: the words of the command line.
        presets: option names and values.
        groups: the groups of options the command has, by their name in `Options`.
        description: what ``--help`` says first.
        prog: the name of the command.

    Raises:
        UsageError: an unknown flag, a value of the wrong type or outside its range, or a preset
            for settings that were never published.
    """
    given = list(arguments)
    file: dict[str, Any] = {}
    if given and Path(given[0]).suffix in CONFIGURATION_SUFFIXES:
        file = read_configuration(Path(given.pop(0)), groups)
    made = parser(groups, description, prog)
    options, preset = parsed(made, [*words(presets), *words(file), *given], groups)
    if preset is None:
        return options
    published = words(paper_settings(options))
    return parsed(made, [*words(presets), *published, *words(file), *given], groups)[0]


def parsed(
    made: Parser, arguments: list[str], groups: Mapping[str, type]
) -> tuple[Options, str | None]:
    """The options in the words of a command line, and the preset they name."""
    found: Any = made.parse_args_into_dataclasses(
        args=arguments, look_for_args_file=False, return_remaining_strings=True
    )
    *values, rest, unknown = found
    if unknown:
        known = [f"--{name}" for name in names_of(groups)]
        near = get_close_matches(unknown[0], known, n=1)
        remedy = f"did you mean {near[0]}?" if near else "--help lists the options"
        raise UsageError(f"unknown argument {unknown[0]!r}: {remedy}")
    if rest.configuration is not None:
        raise UsageError(
            f"unexpected word {rest.configuration!r}: options are --NAME VALUE, and a "
            f"configuration file (.json, .yaml) comes first"
        )
    options = Options(**dict(zip(groups, values, strict=True)), dry_run=rest.dry_run)
    return options, rest.preset
