"""The log lines of a run, sent to the trackers that accelerate knows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from applications.errors import UsageError
from applications.options.arguments import Options

PROJECT = "blo-torch"
LOGS = "logs"
"""The folder, in that of a run, of the trackers that write files."""


@dataclass(frozen=True)
class Trackers:
    """The trackers of a run: accelerate's, or none."""

    accelerator: Any = None

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a line of metrics.jsonl, under ``PHASE/...``.

        Args:
            line: the line.
            step: the updates of the weights so far, over all phases.
        """
        if self.accelerator is not None:
            phase = line["phase"]
            kept = {name: line[name] for name in SENT if name in line}
            found = {f"{phase}/{name}": value for name, value in numbers(kept)}
            self.accelerator.log(found, step=step)

    def end(self, metrics: Mapping[str, Mapping[str, float | None]], step: int) -> None:
        """Send the numbers of the finished run, under ``final/SPLIT/...``, and close."""
        if self.accelerator is not None:
            self.accelerator.log(dict(numbers({"final": metrics})), step=step)
            # Not end_training, which ends the group of processes as well.
            for tracker in self.accelerator.trackers:
                tracker.finish()


SENT = ("losses", "learning_rates", "responses", "validation", "num_gradients", "seconds")


def numbers(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested mappings, each under the path to it; what is no number is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{before}{name}/")
        elif isinstance(value, int | float):
            yield f"{before}{name}", value


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what is no tracker of accelerate's, or is not installed.

    Raises:
        UsageError: with the trackers that are known, or installed.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = sorted(tracker.value for tracker in get_available_trackers())
    for name in names:
        if name not in (*known, "all", "none"):
            raise UsageError(
                f"argument --report_to: accelerate knows no tracker {name!r}; choose among "
                f"{', '.join(known)}, all or none"
            )
        if name in known and name not in installed:
            raise UsageError(
                f"argument --report_to: the package of {name!r} is not installed (installed: "
                f"{', '.join(installed) or 'none'}); install it with pip"
            )


def trackers(options: Options, folder: Path) -> Trackers:
    """The trackers that a run reports to, with its options as their configuration."""
    names = [name for name in options.run.report_to or [] if name != "none"]
    if not names:
        return Trackers()
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    accelerator = Accelerator(
        cpu=options.model.device == "cpu",
        log_with=names,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / LOGS)),
    )
    accelerator.init_trackers(
        PROJECT,
        config={name: plain(value) for name, value in options.as_dict().items()},
        init_kwargs={"wandb": {"name": str(folder), "dir": str(folder)}},
    )
    return Trackers(accelerator)


def plain(value: object) -> Any:
    """An option as trackers take it: a number, a text or a truth."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "default" if value is None else value
