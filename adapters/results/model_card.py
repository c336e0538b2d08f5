"""A section on the bi-level training for the model card that PEFT writes."""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import PeftModel

from adapters.training.partition import levels
from blo import Info

__all__ = ["score_table", "write_model_card"]

NAME = "README.md"
START, END = "<!-- bi-level -->", "<!-- /bi-level -->"
SPLITS = ("train", "validation", "test")


def write_model_card(
    path: str | os.PathLike[str],
    model: PeftModel,
    *,
    lower_examples: int,
    upper_examples: int,
    scores: Mapping[str, Mapping[str, float | None]],
    response: Info | str,
    seeds: Mapping[str, int],
    steps: int = 1,
    metrics: Sequence[str] = ("accuracy",),
    notes: str = "",
) -> Path:
    """Return the model card in a folder that ``model.save_pretrained`` wrote, with a bi-level
    section.

    The section tells how the training data were split between the levels, what each level trained,
    by which hypergradient and with which scale, from which seeds, and what came of it: loss,
    metrics and calibration error on the training, the validation and the test data, and the gaps
    between them. It is appended to PEFT's text, or replaces the section of an earlier call.

    Args:
        path: the folder.
        model: the model that was saved, with its bi-level adapter active and trainable.
        lower_examples: training examples of the lower level.
        upper_examples: held-out training examples of the upper level.
        scores: by split, "train" and "test" and, where there is one, "validation": the numbers by
            name, "loss" among them and "ece" where it was measured. None for what is not defined.
        response: how the lower solution responded: ``record.responses["upper <- lower"]`` of the
            last round, or words.
        seeds: by name, such as ``{"split": 0, "model": 1}``.
        steps: lower updates for each upper one.
        metrics: the names among the scores that are reported, higher being better.
        notes: a paragraph of your own.

    Raises:
        FileNotFoundError: if the folder has no model card yet.
        ValueError: if a split or one of its numbers is missing or unknown, or a count is below 1.

    Example:
        >>> import tempfile, torch
        >>> from adapters import BiLoraConfig
        >>> from adapters.results.model_card import write_model_card
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     card = write_model_card(
        ...         folder,
        ...         model,
        ...         lower_examples=80,
        ...         upper_examples=20,
        ...         scores={
        ...             "train": {"loss": 0.2, "accuracy": 0.95, "ece": 0.02},
        ...             "test": {"loss": 0.5, "accuracy": 0.85, "ece": 0.06},
        ...         },
        ...         response="darts()",
        ...         seeds={"split": 0, "model": 1},
        ...     )
        ...     "| test - train | 0.3 | -0.1 | 0.04 |" in card.read_text()
        True
    """
    for argument, value in (
        ("lower_examples", lower_examples),
        ("upper_examples", upper_examples),
        ("steps", steps),
    ):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value!r}")
    card = Path(path, NAME)
    if not card.is_file():
        raise FileNotFoundError(f"no model card at {card}: call model.save_pretrained(path) first")
    section = "\n\n".join(
        [
            START,
            "## Bi-level training",
            _split(model, lower_examples, upper_examples),
            _settings(response, seeds, steps),
            score_table(scores, metrics),
            *([notes.strip()] if notes.strip() else []),
            END,
        ]
    )
    _replace(card, _without_section(card.read_text(encoding="utf-8")) + "\n\n" + section + "\n")
    return card


def _split(model: PeftModel, lower_examples: int, upper_examples: int) -> str:
    split = levels(model)
    whole = lower_examples + upper_examples
    rows = [
        ("lower", lower_examples, split.lower_names, split.lower),
        ("upper", upper_examples, split.upper_names, split.upper),
    ]
    lines = [
        "The training data were split between two levels: the upper parameters are fitted to the "
        "held-out part, at the solution of the lower level for them.",
        "",
        "| level | examples | share | parameters | which |",
        "| --- | --- | --- | --- | --- |",
    ]
    for level, examples, names, parameters in rows:
        kinds = ", ".join(f"`{kind}`" for kind in dict.fromkeys(map(_kind, names)))
        count = sum(p.numel() for p in parameters)
        lines.append(f"| {level} | {examples} | {examples / whole:.0%} | {count:,} | {kinds} |")
    return "\n".join(lines)


def _kind(name: str) -> str:
    """Return what a parameter is, out of its name: the part that PEFT begins with ``lora_``."""
    for part in name.split("."):
        if part.startswith("lora_") or part == "modules_to_save":
            return part
    return name.rpartition(".")[2]


def _settings(response: Info | str, seeds: Mapping[str, int], steps: int) -> str:
    if isinstance(response, Info):
        method, scale = response.method, response.scale
        radius = response.radius
        told = [
            f"hypergradient: `{method}`",
            f"scale of the response: {'none' if scale is None else _several(scale)}",
            *([] if radius is None else [f"radius of the difference: {_number(radius)}"]),
        ]
    else:
        told = [f"hypergradient: `{response}`"]
    told.append(f"lower updates for each upper one: {steps}")
    if not seeds:
        raise ValueError("seeds must name at least one seed, got {}")
    told.append("seeds: " + ", ".join(f"{name} {seed}" for name, seed in seeds.items()))
    return "\n".join(f"- {line}" for line in told)


def _several(scale: float | tuple[float, ...]) -> str:
    if not isinstance(scale, tuple):
        return _number(scale)
    return ", ".join(_number(value) for value in dict.fromkeys(scale))


def score_table(
    scores: Mapping[str, Mapping[str, float | None]], metrics: Sequence[str] = ("accuracy",)
) -> str:
    """Return a Markdown table of the numbers by split, and of the gaps between the splits.

    Args:
        scores: as in `write_model_card`.
        metrics: the names among the scores that are shown, beside the loss and the ECE.

    Raises:
        ValueError: if a split or one of its numbers is missing or unknown.

    Example:
        >>> from adapters.results.model_card import score_table
        >>> train, test = {"loss": 0.2, "accuracy": 0.9}, {"loss": 0.5, "accuracy": 0.8}
        >>> scores = {"train": train, "test": test}
        >>> print(score_table(scores))
        | | loss | accuracy |
        | --- | --- | --- |
        | train | 0.2 | 0.9 |
        | test | 0.5 | 0.8 |
        | test - train | 0.3 | -0.1 |
    """
    for split in scores:
        if split not in SPLITS:
            raise ValueError(f"scores must have the keys {SPLITS}, got {split!r}")
    for split in ("train", "test"):
        if split not in scores:
            raise ValueError(f"scores must hold {split!r}, got {sorted(scores)}")
    calibrated = any("ece" in numbers for numbers in scores.values())
    names = ["loss", *metrics, *(["ece"] if calibrated else [])]
    for split, numbers in scores.items():
        for name in names:
            if name not in numbers:
                raise ValueError(f"scores[{split!r}] must hold {name!r}, got {sorted(numbers)}")
    lines = [
        "| | " + " | ".join("ECE" if name == "ece" else _cell(name) for name in names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for split in (split for split in SPLITS if split in scores):
        row = " | ".join(_number(scores[split][name]) for name in names)
        lines.append(f"| {split} | {row} |")
    for first in (split for split in SPLITS[:2] if split in scores):
        gaps = [_gap(scores["test"][name], scores[first][name]) for name in names]
        lines.append(f"| test - {first} | " + " | ".join(gaps) + " |")
    return "\n".join(lines)


def _gap(test: float | None, other: float | None) -> str:
    return _number(None if test is None or other is None else test - other)


def _number(value: float | None) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _without_section(text: str) -> str:
    before, found, rest = text.partition(START)
    if not found:
        return text.rstrip()
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the model card holds {START} without {END}; remove that line")
    return (before.rstrip() + "\n\n" + after.strip()).rstrip()


def _replace(card: Path, text: str) -> None:
    with tempfile.TemporaryDirectory(dir=card.parent, prefix=".card-") as staging:
        draft = Path(staging, NAME)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, card)
