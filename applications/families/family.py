"""What differs between the commands, and nothing else: data, head, batches, evaluation."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from datasets import Dataset
from peft import TaskType
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from applications.data.batches import Collator, Encoded
from applications.data.examples import TaskData
from applications.families.metrics import Evaluation
from applications.options.arguments import DataOptions, ModelOptions, Options

Stage = Literal["training", "final", "selected"]


def wants_details(split: str, stage: Stage) -> bool:
    """Whether an evaluation tells what lies behind its metrics."""
    return split == "test" and stage == "final"


@dataclass(frozen=True)
class Setting:
    """What training and evaluations of one run share beside the model and the examples."""

    options: Options
    task: TaskData
    tokenizer: PreTrainedTokenizerBase


class Family(Protocol):
    """One kind of fine-tuning: texts classified, words tagged, or text generated.

    The driver, `applications.runs.experiment.finetune`, is the same for all. A batch goes to
    ``model(**batch)``, whose ``loss`` is minimised.
    """

    @property
    def command(self) -> str:
        """The name of the command: ``nlu``."""

    @property
    def auto_model(self) -> type[Any]:
        """The class of transformers that loads its models."""

    @property
    def task_type(self) -> TaskType:
        """PEFT's name of the head, which decides what is trained beside the adapter."""

    def load_task(
        self, options: DataOptions, *, part: bool = False, unread: Collection[str] = ()
    ) -> TaskData:
        """The examples that the options ask for, in the splits in which they are distributed.

        Args:
            options: which data.
            part: they are a part of what is trained on: one class will do, and other splits may
                hold classes that it lacks.
            unread: columns that are no texts to be read, whatever they hold.
        """

    def load_base(
        self, options: ModelOptions, task: TaskData
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The pre-trained model with a head for the task, in float32, and its tokenizer."""

    def encode(
        self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> Encoded:
        """Training rows of token numbers with their ``labels``."""

    def texts(self, examples: Dataset) -> Iterable[str]:
        """What the model reads of every example, as text."""

    def check(self, model: PreTrainedModel, splits: Mapping[str, Dataset], work: Setting) -> None:
        """Raise a UsageError for examples that the model cannot read."""

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """From rows to a padded batch."""

    def evaluate(
        self, model: nn.Module, examples: Dataset, setting: Setting, *, split: str, stage: Stage
    ) -> Evaluation:
        """Loss and metrics of the model on the examples, in evaluation mode; the mode is restored.

        ``split`` names the examples, ``stage`` the state of the model: metrics that cost much may
        be None during training.

        Changes neither the random state nor the model, so that an evaluation in between does not
        change a training run.
        """

    def predict(
        self, model: nn.Module, rows: Dataset, setting: Setting, columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """What the model predicts for each row of a file, in evaluation mode and in their order.

        ``prediction``, a name, a number, a list of tags or a text; for classes also
        ``probability_NAME`` of each.

        Args:
            model: as it was trained.
            rows: with the texts, in whatever columns; answers are not looked at.
            setting: of the run.
            columns: of the examples that it was trained on: ``text`` and ``pair``, say.

        Raises:
            UsageError: the texts are not there.
        """
