"""The fine-tuning commands, and the groups of options that each has."""

from collections.abc import Mapping
from dataclasses import dataclass

from applications.options.arguments import GenerationOptions
from applications.options.command_line import GROUPS


@dataclass(frozen=True)
class Command:
    """A command: ``python -m applications.COMMAND``."""

    command: str
    groups: Mapping[str, type]
    """By their name in `Options`."""


COMMANDS: Mapping[str, Command] = {
    each.command: each
    for each in (
        Command("nlu", GROUPS),
        Command("nlg", {**GROUPS, "generation": GenerationOptions}),
        Command("token_classification", GROUPS),
    )
}
