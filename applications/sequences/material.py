"""What all sequences of one run share: the data set, encoded, and the model's tokenizer."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from applications.data.batches import Encoded
from applications.data.examples import TaskData
from applications.data.sources import data_digest
from applications.data.splits import at_most, split_task
from applications.errors import UsageError
from applications.families.classification import TextClassification
from applications.options.arguments import Options
from applications.options.sequences import SequenceOptions

FAMILY = TextClassification()
DATA = "data"
"""The setting that is a digest of the files of the data; None where they are from the Hub."""
# What says where things are and how much is run, and changes no number.
PLACES = (
    *("data_dir", "train_file", "validation_file", "test_file", "device"),
    *("output_dir", "variants", "num_orders", "first_order", "per_device_eval_batch_size"),
)


@dataclass(frozen=True)
class Material:
    """What all sequences of one run share.

    Attributes:
        task: the data set; its notes say how it was divided, too.
        tokenizer: of the base model.
        train: encoded training examples.
        test: encoded examples to test on.
        options: of the run.
    """

    task: TaskData
    tokenizer: PreTrainedTokenizerBase
    train: Encoded
    test: Encoded
    options: Options

    @property
    def sequence(self) -> SequenceOptions:
        """The options of the sequence."""
        assert self.options.sequence is not None
        return self.options.sequence


def gathered(options: Options) -> Material:
    """The examples that the options ask for, encoded for their model.

    Raises:
        UsageError: the data have no classes, or cannot be read.
    """
    task = FAMILY.load_task(options.data)
    if task.kind != "classification":
        raise UsageError(
            f"argument --label_column: classes must be names or whole numbers, the labels of "
            f"{task.name!r} are decimals"
        )
    splits = split_task(task, options.data)
    _, tokenizer = FAMILY.load_base(options.model, task)
    assert options.sequence is not None
    test = splits.test
    if options.sequence.test_on == "validation":
        if splits.validation is None:
            raise UsageError(
                "argument --test_on: no validation split, got 'validation'; cut one from the "
                "training examples with --validation_fraction"
            )
        test = splits.validation
    limit, seed = options.data.max_eval_samples, options.data.split_seed

    def encoded(examples: Dataset) -> Encoded:
        return FAMILY.encode(examples, tokenizer, options)

    return Material(
        replace(task, notes=splits.notes),
        tokenizer,
        encoded(splits.train),
        encoded(at_most(test, limit, task, seed)),
        options,
    )


def settings(options: Options) -> dict[str, Any]:
    """What the numbers of a sequence depend on, beside variant and order."""
    assert options.sequence is not None
    groups = (options.model, options.data, options.sequence)
    values = {name: value for group in groups for name, value in asdict(group).items()}
    found = {name: value for name, value in values.items() if name not in PLACES}
    return {**found, DATA: data_digest(options.data)}


def placed(options: Options) -> Options:
    """The options with the folder of the results filled in."""
    assert options.sequence is not None
    if options.sequence.output_dir is not None:
        return options
    name = options.data.task_name or "files"
    folder = f"runs/continual/{name.replace('/', '-')}"
    return replace(options, sequence=replace(options.sequence, output_dir=folder))
