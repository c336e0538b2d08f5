"""Install a wheel and an sdist where the sources are not, and use what was installed.

``python -m tests.installed dist/*`` installs each archive into an empty folder, without its
dependencies (those of this environment serve), and runs `smoke` there in a new process.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TEXTS = ["a fine film", "a dull film", "fine and warm", "dull and cold"]


def main(archives: list[str]) -> None:
    """Try each archive; the first that fails ends the program."""
    for archive in archives:
        with tempfile.TemporaryDirectory() as name:
            folder, place = Path(name) / "installed", Path(name) / "empty"
            place.mkdir()
            pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            flags = ["--no-deps", "--no-build-isolation", "--target", str(folder)]
            subprocess.run([*pip, *flags, str(Path(archive).resolve())], check=True)
            script = place / "smoke.py"
            script.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
            environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
            words = [sys.executable, script.name, "--smoke", str(folder)]
            subprocess.run(words, cwd=place, env=environment, check=True)
        print(f"{Path(archive).name}: installed, trained, predicted")


def smoke(folder: Path) -> None:
    """Train two levels, run a command, predict with what it left: all from `folder`."""
    import adapters
    import applications
    import blo

    for package in (adapters, applications, blo):
        home = Path(str(package.__file__)).parent
        assert home.parent == folder.resolve(), f"{package.__name__} comes from {home}"
        assert (home / "py.typed").is_file()
    two_levels()
    model = tiny_model(Path("model"))
    lines = ["text,label", *(f"{t},{'good' if 'fine' in t else 'bad'}" for t in TEXTS * 6)]
    Path("rows.csv").write_text("\n".join(lines), encoding="utf-8")
    command("nlu", "--train_file", "rows.csv", "--model", model, "--method", "bilora")
    assert "<svg" in Path("runs/report.html").read_text(encoding="utf-8")
    command("predict", "runs", "--input_file", "rows.csv", "--output_file", "said.csv")
    assert len(Path("said.csv").read_text(encoding="utf-8").splitlines()) == 25


def two_levels() -> None:
    """A learned penalty: the hypergradient passes its check."""
    import torch

    import blo

    x, y = (torch.nn.ParameterList([torch.tensor([v]).double()]) for v in (1.0, 2.0))
    sgd = [torch.optim.SGD(p.parameters(), 0.1) for p in (x, y)]
    f, g = (lambda _: (y[0] - 1).square().sum()), (lambda _: (y[0] - x[0].sin()).square().sum())
    upper = blo.Problem("upper", f, [x, y], sgd[0], [None])
    lower = blo.Problem("lower", g, [x, y], sgd[1], [None], steps=5, method=blo.cg(1))
    engine = blo.Engine(blo.ProblemGraph([upper, lower]))
    engine.run(2)
    assert blo.check_hypergradient(engine).passed


def tiny_model(folder: Path) -> str:
    """The folder of a random BERT with a tokenizer of the words in `TEXTS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
    numbers = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(str(folder))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), intermediate_size=16, **sizes)
    BertModel(config).save_pretrained(str(folder))
    return str(folder)


def command(name: str, *words: str) -> None:
    """Run a command of the installed package to its end."""
    import importlib

    main = importlib.import_module(f"applications.{name}").main
    training = ["--max_steps", "2", "--output_dir", "runs", "--device", "cpu"]
    assert main([*words, *(training if name == "nlu" else [])]) in (0, None)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--smoke"]:
        smoke(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
