"""A tiny model and tiny data, made on the spot: no network, no weights, no download cache."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    set_seed,
)

import applications.comparison.figures
import applications.runs.curves
from applications.options.arguments import Options
from applications.options.command_line import parse_options
from applications.pages.drawing import Drawing
from tests.applications.tiny_runs import Run

if TYPE_CHECKING:
    from tests.applications import left_runs

TOPICS = {
    "animals": ["cat", "dog", "horse", "bird", "fish"],
    "food": ["bread", "cheese", "apple", "soup", "rice"],
    "tools": ["hammer", "saw", "drill", "nail", "glue"],
}
FILLERS = ["the", "a", "old", "new", "very", "big", "small", "red", "blue", "and", "of", "with"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let ``datasets`` write to, and find, nothing but an empty folder."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of pages empty, which takes a third of a tiny run, except in tests marked
    figures.
    """
    if request.node.get_closest_marker("figures") is None:
        empty = lambda figure, title, text: Drawing(title, text, f"<svg><!-- {title} --></svg>")
        for module in (applications.runs.curves, applications.comparison.figures):
            monkeypatch.setattr(module, "drawn", empty)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random two-layer BERT with dropout and a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = SPECIAL + FILLERS + [word for words in TOPICS.values() for word in words]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    backend = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    ).save_pretrained(str(folder))
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(str(folder))
    return str(folder)


def sentence(topic: str, draw: random.Random) -> str:
    """Fillers around one word of the topic."""
    words = [*draw.sample(FILLERS, draw.randint(2, 6)), draw.choice(TOPICS[topic])]
    draw.shuffle(words)
    return " ".join(words)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (48 rows), validation.csv (12) and test.csv (30), three classes."""
    folder = tmp_path_factory.mktemp("topics")
    draw = random.Random(0)
    for split, count in {"train": 48, "validation": 12, "test": 30}.items():
        rows = ["text,label"]
        rows += [f"{sentence(t, draw)},{t}" for t in TOPICS for _ in range(count // len(TOPICS))]
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def tiny(tiny_model: str, tiny_data: Path, tmp_path: Path) -> Run:
    """A function from flags to the options of a tiny run."""

    def options(method: str, *flags: str, folder: str = "run") -> Options:
        return parse_options(
            [
                *("--model", tiny_model, "--data_dir", str(tiny_data), "--method", method),
                *("--output_dir", str(tmp_path / folder), "--device", "cpu", "--disable_tqdm"),
                *("--lora_r", "2", "--learning_rate", "1e-2", "--max_steps", "6"),
                *("--per_device_train_batch_size", "8", "--logging_steps", "2", *flags),
            ]
        )

    return options


@pytest.fixture(scope="session")
def left(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: str, tiny_data: Path
) -> "dict[str, left_runs.Left]":
    """What runs of every kind have left, by the names in `tests.applications.left_runs`."""
    from tests.applications import left_runs

    return left_runs.left_runs(tmp_path_factory.mktemp("left"), tiny_model, tiny_data)
