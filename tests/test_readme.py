"""The code in the README and in docs/recipes.md runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README, RECIPES = ROOT / "README.md", ROOT / "docs" / "recipes.md"


def blocks(path=README):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_the_custom_problem_lowers_its_upper_loss(capsys):
    torch.manual_seed(0)
    source = blocks()[0]
    assert len([line for line in source.splitlines() if line.strip()]) <= 22
    exec(compile(source, "README.md", "exec"), {})
    losses = [float(v) for v in re.findall(r", penalty ([\d.]+);", capsys.readouterr().out)]
    assert len(losses) == 50
    assert losses[-1] < 0.7 * losses[0]


def test_the_recipes_find_the_common_start_and_a_longer_step():
    torch.manual_seed(0)
    maml, imaml, rates, decay = blocks(RECIPES)
    names = {}
    for source in (maml, imaml):
        exec(compile(source, "recipes.md", "exec"), names)
        assert float((names["start"][0].detach() - names["common"]).abs().max()) < 0.2
    exec(compile(rates, "recipes.md", "exec"), names)
    assert names["rates"]["lr"].item() > -2.5
    exec(compile(decay, "recipes.md", "exec"), names)
    assert names["hyper"]["lr"].item() > -1.9
    assert abs(names["hyper"]["decay"].item() + 3) > 0.1  # the steps are differentiated in it


def test_bilora_trains_and_exports(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    base = transformers.BertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(50, (4, 6)), "labels": torch.tensor([0, 1, 0, 1])}
    source = blocks()[1]
    assert "run(1000)" in source
    monkeypatch.chdir(tmp_path)
    names = {"base": base, "d1": [batch], "d2": [batch]}
    exec(compile(source.replace("run(1000)", "run(3)"), "README.md", "exec"), names)
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    values = [p.detach() for p in names["split"].upper]
    assert any(float((v - v[0]).abs().max()) > 0 for v in values)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory")
def test_a_trainer_trains_on_two_levels(tmp_path):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    from adapters import BiLoraConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, intermediate_size=16, **sizes)
    bert = transformers.BertForSequenceClassification(config)
    adapter = BiLoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    names = {
        "model": peft.get_peft_model(bert, adapter),
        "args": transformers.TrainingArguments(
            tmp_path, max_steps=2, save_strategy="no", report_to="none", use_cpu=True
        ),
        "data": [{"input_ids": [i, i + 1], "labels": i % 2} for i in range(10)],
    }
    exec(compile(blocks()[2], "README.md", "exec"), names)
    assert names["trainer"].state.global_step == 2


def test_every_method_of_the_table_exists():
    import blo

    table = README.read_text().split("<!-- methods -->")[1]
    names = re.findall(r"`(\w+)\(", table)
    assert len(names) >= 13
    assert all(callable(getattr(blo, name)) for name in names)
