"""The blocks of the documentation's pages, and what they take for granted."""

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
Names = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and its line in the page."""

    page: Path
    language: str
    text: str
    line: int

    def run(self, names: Names) -> None:
        """Execute the block as the file that it stands in, so that errors show its line."""
        exec(compile("\n" * self.line + self.text, str(self.page), "exec"), names)


def called(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """The blocks of a page in these languages, in their order."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found[1] in languages:
            yield Block(page, found[1], found[2], text[: found.start()].count("\n") + 1)


def bert(**options: Any) -> Any:
    """A random BERT of two layers that classifies."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, intermediate_size=32, **sizes, **options)
    return transformers.BertForSequenceClassification(config).eval()  # as from_pretrained leaves it


def a_model() -> Names:
    """A model, two parts of its data, and what pages about adapters import by other blocks."""
    import peft

    import adapters
    import blo

    batch = {"input_ids": torch.randint(50, (4, 6)), "labels": torch.tensor([0, 1, 0, 1])}
    public = {name: getattr(adapters, name) for name in adapters.__all__}
    public |= {name: value for name, value in vars(blo).items() if not name.startswith("_")}
    return public | {
        "torch": torch,
        "Adam": torch.optim.Adam,
        "AdamW": torch.optim.AdamW,
        "get_peft_model": peft.get_peft_model,
        "LoraConfig": peft.LoraConfig,
        "base": bert(),
        "fresh_base": bert(),
        "batch": batch,
        **dict.fromkeys(("d1", "d2", "held_out", "training", "batches", "all_batches"), [batch]),
        "path": Path(tempfile.mkdtemp()) / "adapter",
    }


def a_trainer() -> Names:
    """What TwoLevelTrainer is given."""
    import peft
    import transformers

    names = a_model()
    config = names["BiLoraConfig"](task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(), max_steps=2, save_strategy="no", report_to="none", use_cpu=True
    )
    return names | {
        "model": peft.get_peft_model(bert(), config),
        "args": arguments,
        "data": [{"input_ids": [i, i + 1], "labels": i % 2} for i in range(10)],
    }


# What a page's blocks take for granted; nothing for those that are not here.
PREPARED: dict[str, Callable[[], Names]] = {}
