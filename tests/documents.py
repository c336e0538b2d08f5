"""The blocks of the documentation's pages, and what they take for granted."""

import contextlib
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blo import Engine

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
PREPARED: dict[str, Callable[[], Names]] = {
    "docs/tutorials/bilora.md": a_model,
    "docs/tutorials/bidora.md": a_model,
}
# Pages whose loops are cut to so many rounds.
ROUNDS = {"docs/tutorials/bilora.md": 3, "docs/tutorials/bidora.md": 3}


@contextmanager
def short(rounds: int | None) -> Iterator[None]:
    """Cut every loop of an engine to so many rounds; None leaves them whole."""
    whole, one = Engine.run, Engine.rounds
    if rounds is not None:
        Engine.run = lambda self, n: whole(self, min(n, rounds))  # type: ignore[method-assign]
        Engine.rounds = lambda self, n: one(self, min(n, rounds))  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine.run, Engine.rounds = whole, one  # type: ignore[method-assign]


def run_page(page: Path) -> None:
    """Execute the Python of a page, block after block, in one set of names.

    Raises:
        AssertionError: a block prints something else than the block ``text`` behind it says.
    """
    names, said = PREPARED.get(called(page), dict)(), ""
    with short(ROUNDS.get(called(page))):
        for block in blocks(page, "python", "text"):
            if block.language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    block.run(names)
                said = out.getvalue()
            elif said:
                agree(said, block)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def agree(said: str, block: Block) -> None:
    """Compare what was printed with a block: words as they are, numbers to a tenth or
    within two hundredths, since rounding differs by machine.
    """
    where = f"{called(block.page)}:{block.line}"
    assert NUMBER.sub("#", said).split() == NUMBER.sub("#", block.text).split(), where
    for one, other in zip(NUMBER.findall(said), NUMBER.findall(block.text), strict=True):
        a, b = abs(float(one)), abs(float(other))
        close = abs(a - b) <= max(0.02, 0.1 * max(a, b))
        assert close, f"{where}: {one} printed, {other} written"
