"""The tasks known by name: where they lie on the Hub, their columns there, their command."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from applications.errors import UsageError

GLUE = "nyu-mll/glue"
# Where the Hub keeps the tables that it made from data sets with a loading script, which datasets
# no longer runs.
CONVERTED = "refs/convert/parquet"
CARRIED_TASK = "bbc_headlines"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskSpec:
    """Where a task lies on the Hub, its columns there, and the metric it is known by."""

    hub: str
    hub_name: str | None
    texts: tuple[str, ...]
    metric: str = "accuracy"
    label: str = "label"
    test_split: str = "test"
    command: str = "nlu"
    """Which command the task belongs to: applications.nlu."""
    revision: str | None = None
    label_names: tuple[str, ...] = ()
    """The names of labels that the data set only numbers."""
    folder: str | None = None
    """Where its tables lie in the data set, if that has others beside them."""

    def tables(self) -> dict[str, list[str]] | None:
        """The tables by split, under their present names and their earlier ones; None for all."""
        if self.folder is None:
            return None
        return {
            split: [f"{self.folder}/{split}/*.parquet", f"{self.folder}/*-{split}.parquet"]
            for split in SPLITS
        }


def glue(name: str, *texts: str, metric: str = "accuracy", test: str = "validation") -> TaskSpec:
    """A GLUE task, tested on its validation split: the labels of its test split are hidden."""
    return TaskSpec(GLUE, name, texts, metric, test_split=test)


def tagged(
    hub: str, *, label: str = "ner_tags", revision: str = CONVERTED, names: Iterable[str] = ()
) -> TaskSpec:
    """A task on named entities."""
    return TaskSpec(
        hub,
        None,
        ("tokens",),
        "f1",
        label,
        command="token_classification",
        revision=revision,
        label_names=tuple(names),
    )


def written(hub: str, folder: str) -> TaskSpec:
    """A task of writing text."""
    return TaskSpec(hub, None, (), "bleu", command="nlg", revision=CONVERTED, folder=folder)


PAIR = ("sentence1", "sentence2")
BC5CDR_TAGS = ("O", "B-Chemical", "B-Disease", "I-Disease", "I-Chemical")
TASKS: Mapping[str, TaskSpec] = {
    "cola": glue("cola", "sentence", metric="matthews"),
    "sst2": glue("sst2", "sentence"),
    "mrpc": glue("mrpc", *PAIR),
    "stsb": glue("stsb", *PAIR, metric="pearson"),
    "qqp": glue("qqp", "question1", "question2"),
    "mnli": glue("mnli", "premise", "hypothesis", test="validation_matched"),
    "qnli": glue("qnli", "question", "sentence"),
    "rte": glue("rte", *PAIR),
    "wnli": glue("wnli", *PAIR),
    "trec": TaskSpec("SetFit/TREC-QC", None, ("text",), label="label_coarse"),
    "subj": TaskSpec("SetFit/subj", None, ("text",)),
    "cr": TaskSpec("SetFit/CR", None, ("text",)),
    "banking77": TaskSpec("mteb/banking77", None, ("text",)),
    "conll2003": tagged("eriktks/conll2003"),
    "ncbi_disease": tagged("ncbi/ncbi_disease"),
    "bc5cdr": tagged("tner/bc5cdr", label="tags", names=BC5CDR_TAGS),
    "wnut17": tagged("leondz/wnut_17"),
    "e2e": written("tuetschek/e2e_nlg", "default"),
    "webnlg": written("GEM/web_nlg", "en"),
}
# The command of every task.
COMMANDS: Mapping[str, str] = {
    **{name: spec.command for name, spec in TASKS.items()},
    CARRIED_TASK: "nlu",
}


def check_command(name: str | None, command: str) -> None:
    """Raise a UsageError where the name is that of another command's task."""
    owner = command if name is None else COMMANDS.get(name, command)
    if owner != command:
        raise UsageError(
            f"argument --task_name: {name!r} is a task of python -m applications.{owner}"
        )
