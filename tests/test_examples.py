"""Every file in examples/ runs as it is, and prints what it is meant to show."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from blo import Engine

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    return capsys.readouterr().out


def numbers(out):
    return [float(n) for n in re.findall(r"\d+\.\d+(?:e[-+]\d+)?", out)]


def test_learned_ridge_penalties_lower_the_test_error(capsys):
    out = run("ridge_penalties", capsys)
    before, after = (float(t) for t in re.findall(r"test (\d+\.\d+)", out))
    assert after < 0.6 * before


def test_methods_rank_by_their_error_on_plain_functions(capsys):
    errors = [float(e) for e in re.findall(r"error (\S+)", run("plain_functions", capsys))]
    dense, cg, neumann, t1t2, darts = errors
    assert dense < 1e-12
    assert cg < 1e-9
    assert neumann < t1t2
    assert t1t2 == pytest.approx(darts, rel=0.1)


def test_wrong_labels_get_small_weights(capsys):
    wrong, right = (float(w) for w in re.findall(r"labels (\d\.\d+)", run("data_cleaning", capsys)))
    assert wrong < 0.2 < 0.6 < right


def test_three_levels_are_each_solved_once_a_path(capsys, monkeypatch):
    whole = Engine.run  # of 50 rounds, alike in this
    monkeypatch.setattr(Engine, "run", lambda engine, num_rounds: whole(engine, 3))
    out = run("three_levels", capsys)
    assert len(re.findall(r"(.*) <- (.*): converged", out)) == 3


def test_maml_learns_a_start_by_the_gradient_written_by_hand(capsys):
    off, before, after = numbers(run("maml", capsys))
    assert off < 1e-5
    assert after < 0.5 * before


def test_imaml_learns_a_point_by_the_gradient_in_closed_form(capsys):
    off, before, after = numbers(run("imaml", capsys))
    assert off < 1e-3
    assert after < 0.3 * before


@pytest.mark.parametrize("name", ["own_loop", "accelerate_loop", "lightning_module"])
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
def test_loops_of_ones_own_trust_the_source_without_noise(name, capsys, tmp_path, monkeypatch):
    if name == "lightning_module":
        pytest.importorskip("lightning", reason="Lightning is not installed")
    monkeypatch.chdir(tmp_path)
    out = {
        "own_loop": lambda: run("own_loop", capsys),
        "accelerate_loop": lambda: run("accelerate_loop", capsys),
        "lightning_module": lambda: run("lightning_module", capsys),
    }[name]()
    right, wrong = numbers(out)[-2:]
    assert wrong < 0.1 < 0.9 < right


# torch's and transformers' own: no accelerator for pinned memory, the saved random state.
TRAINERS = pytest.mark.filterwarnings(
    "ignore:.*pin_memory", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


@TRAINERS
def test_sft_trains_on_two_levels(capsys, tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="TRL is not installed")
    monkeypatch.chdir(tmp_path)
    losses = numbers(run("sft", capsys))[-4:]
    assert losses[2] < losses[0]


@TRAINERS
def test_trainer_trains_on_two_levels(capsys, monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="<pad>", unk_token="<unk>"
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=2, intermediate_size=16, num_labels=2, **sizes)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    monkeypatch.setattr(
        transformers.AutoModelForSequenceClassification,
        "from_pretrained",
        lambda name, num_labels: transformers.BertForSequenceClassification(config),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["trainer.py"])
    out = run("trainer", capsys)
    assert re.findall(r"^(\d+) lower", out, re.MULTILINE) == ["10", "20", "30"]


def test_bilora_trains_and_exports_a_lora_checkpoint(capsys, monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)

    def tokenizer(texts, **_):
        return {"input_ids": torch.randint(50, (len(texts), 6))}

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    monkeypatch.setattr(
        transformers.AutoModelForSequenceClassification,
        "from_pretrained",
        lambda name, num_labels: transformers.BertForSequenceClassification(config),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bilora.py"])
    out = run("bilora", capsys)
    assert len(out.strip().splitlines()) == 10
    assert (tmp_path / "bilora-as-lora" / "adapter_model.safetensors").exists()


def test_every_example_has_a_test():
    source = Path(__file__).read_text()
    elsewhere = {"distributed"}  # in blo/test_distributed.py, among processes that run already
    for path in EXAMPLES.glob("*.py"):
        if path.stem in elsewhere:
            continue
        assert f'run("{path.stem}", capsys)' in source
