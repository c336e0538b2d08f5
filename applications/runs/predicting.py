"""Predictions of a finished run, and its model merged into one of transformers alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from applications.data.inputs import answered, as_text, read_inputs, with_numbers
from applications.errors import UsageError
from applications.pages.writing import write_whole
from applications.runs.finished import finished_run
from applications.runs.saved import masks_note
from applications.runs.usage import loading_lines


def predict(run: Path, source: Path, target: Path | None, words: Sequence[str] = ()) -> str:
    """Predict for the rows of a file.

    The model is that of `applications.runs.finished`: as it was trained, with the options of the
    run (precision, length, the masks of LoRA Dropout, the search for a text), so that on the test
    split it has the numbers of the run.

    Args:
        run: the folder of the run.
        source: the file.
        target: where the rows go with their predictions, in the form of its ending.
        words: options of the run that are others now.

    Returns:
        The text that was written; csv without a target.

    Raises:
        UsageError: the run, the file or its columns are not there.
    """
    finished = finished_run(run, words)
    rows = read_inputs(source, finished.columns)
    model, setting = finished.load()
    found = finished.family.predict(model, rows, setting, finished.columns)
    ending = ".csv" if target is None else target.suffix
    if source.suffix in (".csv", ".tsv") and ending != ".csv":
        rows = with_numbers(rows)
    text = as_text(answered(rows, found), ending)
    if target is not None:
        write_whole(target, lambda draft: draft.write_text(text, encoding="utf-8"))
    return text


def merge(run: Path, target: Path, words: Sequence[str] = ()) -> str:
    """Write the base model with the adapter in its weights, its tokenizer and label names.

    LoRA Dropout is merged with its masks off.

    Returns:
        How to load it.

    Raises:
        UsageError: the run trained all weights, or is not there.
    """
    finished = finished_run(run, words)
    if finished.place.name == "model":
        raise UsageError(f"argument --merge: {finished.place} is a plain model already")
    model, setting = finished.load()
    tuner: Any = model
    whole = tuner.merge_and_unload()

    def write(draft: Path) -> None:
        whole.save_pretrained(str(draft))
        setting.tokenizer.save_pretrained(str(draft))

    write_whole(target, write)
    lines = loading_lines(target, finished.family.auto_model.__name__)
    said = [note.split(";")[0] for note in masks_note(setting, str(target))]
    return "\n".join([*said, "merged; load it:", *(f"    {line}" for line in lines)])
