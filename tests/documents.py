"""The blocks of the documentation's pages, and what they take for granted."""

import contextlib
import copy
import importlib
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from blo import Engine

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BATCHES = (
    "d1",
    "d2",
    "held_out",
    "training",
    "batches",
    "all_batches",
)  # names of loaders on pages
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

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, intermediate_size=32, **sizes, **options)
    return transformers.BertForSequenceClassification(config).eval()  # as from_pretrained leaves it


def offered_by(package: ModuleType) -> Names:
    """The public names of a package, its modules left out."""
    public = {name: value for name, value in vars(package).items() if not name.startswith("_")}
    return {name: value for name, value in public.items() if not isinstance(value, ModuleType)}


def a_model() -> Names:
    """A model, two parts of its data, and what pages about adapters import by other blocks."""
    import peft

    import adapters
    import blo

    base = bert()
    batch = {"input_ids": torch.randint(50, (4, 6)), "labels": torch.tensor([0, 1, 0, 1])}
    public = {name: getattr(adapters, name) for name in adapters.__all__}
    return (
        public
        | offered_by(blo)
        | {
            "torch": torch,
            "Adam": torch.optim.Adam,
            "AdamW": torch.optim.AdamW,
            "get_peft_model": peft.get_peft_model,
            "LoraConfig": peft.LoraConfig,
            "base": base,
            "fresh_base": copy.deepcopy(base),  # as it was loaded
            "batch": batch,
            **{name: [batch] for name in BATCHES},
            "path": Path(tempfile.mkdtemp()) / "adapter",
        }
    )


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


def a_graph() -> Names:
    """Two small problems, an engine on them, and what makes them."""
    import blo

    def problems() -> list[Any]:
        x, y = (torch.nn.ParameterList([torch.tensor(value)]) for value in (1.0, 2.0))
        sgd = [torch.optim.SGD(p.parameters(), 0.1) for p in (x, y)]
        return [
            blo.Problem("upper", lambda _: (y[0] - 1) ** 2, [x, y], sgd[0], [None]),
            blo.Problem("lower", lambda _: (y[0] - x[0]) ** 2, [x, y], sgd[1], [None]),
        ]

    graph = blo.ProblemGraph(problems())
    names = {
        "problems": problems,
        "graph": graph,
        "engine": blo.Engine(graph),
        "upper": (torch.ones(2).double(),),
        "train": lambda upper: (upper[0].sin(),),
        "upper_loss": lambda upper, lower: (lower[0] - 1).square().sum(),
    }
    return offered_by(blo) | names | {"torch": torch, "Path": Path}


def a_loop() -> Names:
    """A trainer's names, and two problems of which one has its batches handed in."""
    import blo

    names = a_trainer()
    model, trust = torch.nn.Linear(2, 1), torch.nn.ParameterList([torch.zeros(1)])
    adam, sgd = torch.optim.Adam(trust.parameters()), torch.optim.SGD(model.parameters(), 0.1)
    fit = lambda batch: trust[0].sigmoid().sum() * model(batch).square().mean()
    judge = lambda batch: model(batch).square().mean()
    upper = blo.Problem("trust", judge, [model, trust], adam, None, reads=["model"])
    clip = blo.Clip(norm=1.0)
    lower = blo.Problem("model", fit, [model, trust], sgd, None, reads=["trust"], clip=clip)
    batches = [torch.ones(3, 2)] * 3
    loop = {"loader": batches, "held_out": iter(batches), "optimizer": sgd, "network": model}
    return names | loop | {"graph": blo.ProblemGraph([upper, lower])}


def adapted() -> Names:
    """What pages about single adapters use beside a model: what they leave to their readers."""
    import peft

    names = a_model()
    for task in ("sst2", "cr", "trec"):
        config = peft.LoraConfig(r=2, target_modules=["query", "value"])
        expert = peft.get_peft_model(copy.deepcopy(names["base"]), config)
        expert.save_pretrained(Path("out") / task)
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"])
    clients = [peft.get_peft_model(copy.deepcopy(names["base"]), lora) for _ in range(2)]

    def train(model: Any, task: Any) -> None:
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data += 0.01

    return names | {
        "get_peft_model_state_dict": peft.get_peft_model_state_dict,
        "set_peft_model_state_dict": peft.set_peft_model_state_dict,
        "clients": clients,
        "server": clients[0],
        "num_samples": [3, 5],
        "train": train,
        "tasks": [0, 1],
        "heads": [],
    }


PAGES_OF_ADAPTERS = [called(page) for page in PAGES if page.parent.name == "methods"]
# What a page's blocks take for granted; nothing for those that are not here.
PREPARED: dict[str, Callable[[], Names]] = {
    **dict.fromkeys(PAGES_OF_ADAPTERS, adapted),
    "docs/design.md": a_model,
    "docs/distributed.md": a_graph,
    "docs/methods.md": a_graph,
    "docs/moving/peft.md": a_model,
    "docs/own/adapter.md": a_model,
    "docs/resuming.md": a_graph,
    "docs/trainer.md": a_loop,
    "docs/tutorials/bidora.md": a_model,
    "docs/tutorials/bilora.md": a_model,
}
# Pages whose loops are cut to so many rounds.
ROUNDS = dict.fromkeys([*PREPARED], 3)


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


@contextmanager
def as_before(*places: str) -> Iterator[None]:
    """Take back what is added to tables in between, each ``module:name``."""
    found = [place.split(":") for place in places]
    before = {
        (module, name): dict(getattr(importlib.import_module(module), name))
        for module, name in found
    }
    try:
        yield
    finally:
        for (module, name), table in before.items():
            there = getattr(importlib.import_module(module), name)
            there.clear()
            there.update(table)


# What pages about something of one's own add it to.
TABLES = (
    "applications.data.tasks:TASKS",
    "applications.methods:METHODS",
    "benchmarks.cases:CASES",
    "benchmarks.families:FAMILIES",
    "benchmarks.peers.library:LIBRARIES",
)


def run_page(page: Path) -> None:
    """Execute the Python of a page, block after block, in one set of names.

    Raises:
        AssertionError: a block prints something else than the block ``text`` behind it says.
    """
    names, said = PREPARED.get(called(page), dict)(), ""
    with short(ROUNDS.get(called(page))), as_before(*TABLES):
        for block in blocks(page, "python", "text"):
            if block.language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    block.run(names)
                said = out.getvalue()
            elif said:
                agree(said, block)
                said = ""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
