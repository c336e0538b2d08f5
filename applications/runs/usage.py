"""The lines of code that load what a run left, and the command that predicts with it."""

import json
import shlex
from pathlib import Path

from applications.runs.saved import CONFIG, training_form


def loading_lines(
    folder: Path, auto_model: str, revision: str = "main", *, place: Path | None = None
) -> list[str]:
    """Three lines of Python after which ``model`` and ``tokenizer`` are loaded.

    By PEFT: ``from_pretrained`` of transformers, given the folder of an adapter, leaves the
    magnitudes of DoRA as they start.

    Args:
        folder: of the model: ``RUN/adapter``, ``RUN/adapter_training`` or ``RUN/model``.
        auto_model: the class of transformers that loads it.
        revision: of the base model on the Hub.
        place: what the lines call the folder, where it is still to be put there.
    """
    called = str(place or folder)
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return [
            f"from transformers import {auto_model}, AutoTokenizer",
            f"model = {auto_model}.from_pretrained({called!r})",
            f"tokenizer = AutoTokenizer.from_pretrained({called!r})",
        ]
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    pinned = "" if revision == "main" else f", revision={revision!r}"
    # A head of the base model that has another size is replaced by the adapter's.
    head = "" if auto_model.endswith("CausalLM") else ", ignore_mismatched_sizes=True"
    config = f"config=AutoConfig.from_pretrained({called!r}, subfolder={CONFIG!r})"
    load = f"{auto_model}.from_pretrained({base!r}, {config}{pinned}{head})"
    own = "adapters, " if folder.name.endswith(training_form("")) else ""
    return [
        f"import {own}peft; from transformers import AutoConfig, {auto_model}, AutoTokenizer",
        f"model = peft.PeftModel.from_pretrained({load}, {called!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({called!r})",
    ]


def left_model(run: Path) -> Path:
    """The folder of the model that a run left: the form that needs least to be loaded."""
    names = ("adapter", "model", training_form("adapter"))
    return next((run / name for name in names if (run / name).is_dir()), run / names[0])


def prediction_command(run: Path) -> str:
    """The command that predicts with a run's model."""
    return (
        f"python -m applications.predict {shlex.quote(str(run))} --input_file FILE.csv "
        f"--output_file PREDICTIONS.csv"
    )
