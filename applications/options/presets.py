"""Settings that papers published, for ``--preset paper``.

Only what can be read in a primary source is here: BiDoRA's, in the scripts that its authors
released (github.com/t2ance/BiDoRA). The other papers' settings could not be read, or were never
published; asking for them is refused with that reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from applications.errors import UsageError
from applications.options.arguments import Options


@dataclass(frozen=True)
class Published:
    """One row: a script of BiDoRA's release. None: the script does not retrain."""

    rate: float
    decay: float
    upper_decay: float
    steps: int
    retraining_rate: float | None = None
    retraining_steps: int | None = None
    retraining_decay: float = 0.0
    batch: int = 32


BASE: Mapping[str, Published] = {
    "cola": Published(5e-5, 0.1, 0.1, 20_000, 3e-5, 30_000),
    "mnli": Published(5e-5, 0.1, 0.1, 30_000, 7e-5, 40_000),
    "mrpc": Published(2e-5, 0.1, 0.1, 28_000),
    "qnli": Published(2e-5, 0.1, 0.0, 20_000),
    "qqp": Published(5e-5, 0.1, 0.1, 30_000, 5e-5, 30_000),
    "rte": Published(1e-5, 0.1, 0.1, 15_000, 3e-5, 15_000),
    "sst2": Published(1e-5, 0.12, 0.0, 12_000),
    "stsb": Published(1e-5, 0.1, 0.01, 12_000),
}
LARGE: Mapping[str, Published] = {
    "cola": Published(1e-5, 1.0, 1.0, 20_000, 1e-5, 40_000, 1.0),
    "mnli": Published(1e-5, 0.5, 0.5, 55_000),
    "mrpc": Published(1e-5, 0.0, 0.0, 40_000),
    "qnli": Published(1e-5, 0.5, 0.5, 60_000, batch=64),
    "qqp": Published(1e-5, 0.5, 0.5, 50_000),
    "rte": Published(1e-5, 0.5, 0.5, 15_000, 1e-5, 30_000, 0.3),
    "sst2": Published(1e-5, 0.5, 0.5, 20_000),
    "stsb": Published(1e-5, 0.5, 0.5, 14_000),
}
# Input length, and the rows.
BIDORA: Mapping[str, tuple[int, Mapping[str, Published]]] = {
    "roberta-base": (512, BASE),
    "roberta-large": (128, LARGE),
}
PUBLISHED = {"bidora": BIDORA}


def paper_settings(options: Options) -> dict[str, Any]:
    """The published settings of the method for the model and task, as options by name.

    BiDoRA on roberta-base and roberta-large and the eight GLUE tasks: rank 4, alpha 8, query and
    value, one magnitude for each input of a layer, AdamW(0.9, 0.98), eps 1e-6, 10 % warm-up, both
    learning rates equal, the response unscaled (Betty's), an un-squared Gram penalty of 1e-5, and
    retraining in those scripts that retrain; where a script gives the retraining no weight decay,
    0. Their initial A of standard normal values is not reproduced.

    Reference: the scripts released with Qin, Zhang and Xie (2025), arXiv:2410.09758.

    Raises:
        UsageError: nothing was published for them, or it could not be verified.
    """
    method, task = options.adapter.method, options.data.task_name
    unpublished = None if method is None else options.adapter.row.unpublished
    if unpublished is not None:
        raise UsageError(f"argument --preset: {unpublished}; leave --preset out")
    model = options.model.model_name_or_path.rpartition("/")[2]
    models = PUBLISHED.get(str(method), {})
    if model not in models:
        known = " and ".join(BIDORA)
        raise UsageError(
            f"argument --preset: published settings that could be verified are those of bidora on "
            f"{known}, got --method {method} and --model_name_or_path "
            f"{options.model.model_name_or_path!r}; leave --preset out"
        )
    length, rows = models[model]
    row = rows.get(str(task))
    if row is None:
        raise UsageError(
            f"argument --preset: for {model} settings are known for {', '.join(rows)}, got "
            f"--task_name {task!r}; leave --preset out"
        )
    settings: dict[str, Any] = {
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_modules": ["query", "value"],
        "norm_axis": "in",
        "orthogonality": 1e-5,
        "orthogonality_squared": False,
        "max_seq_length": length,
        "per_device_train_batch_size": row.batch,
        "learning_rate": row.rate,
        "upper_learning_rate": row.rate,
        "weight_decay": row.decay,
        "upper_weight_decay": row.upper_decay,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "upper_adam_epsilon": 1e-6,
        "warmup_ratio": 0.1,
        "upper_fraction": 0.2,
        "lower_steps": 1,
        "max_steps": row.steps,
        "hypergradient_scale": 1.0,
        "retraining": "none" if row.retraining_rate is None else "values",
    }
    if row.retraining_rate is not None:
        settings["retraining_learning_rate"] = row.retraining_rate
        settings["retraining_steps"] = row.retraining_steps
        settings["retraining_weight_decay"] = row.retraining_decay
    return settings
