"""The data of a grid's runs: whether they can be there, and whether they are those of before."""

from collections.abc import Sequence
from dataclasses import fields, replace

from applications.comparison.grid import Run
from applications.errors import UsageError
from applications.options.arguments import DataOptions

NAMES = tuple(field.name for field in fields(DataOptions))


def with_data(runs: Sequence[Run]) -> list[Run]:
    """The runs, each with a digest of the files that its data are read from.

    The Hub is not asked.

    Raises:
        UsageError: data that cannot be there: unknown tasks, missing files.
    """
    from applications.data.sources import data_digest, refuse_missing  # brings datasets

    digests: dict[str, str | None] = {}
    found = []
    for run in runs:
        values = {name: run.resolved[name] for name in NAMES if name in run.resolved}
        key = repr((run.command, sorted(values.items(), key=str)))
        if key not in digests:
            options = DataOptions(**values)
            try:
                refuse_missing(options, run.command)
                digests[key] = data_digest(options)
            except UsageError as error:
                raise UsageError(f"run {run.name}: {error}") from error
        found.append(replace(run, data=digests[key]))
    return found
