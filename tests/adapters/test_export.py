"""Checkpoints loaded by a process that knows stock PEFT alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from adapters import BiDoraConfig, BiLoraConfig, export_lora, levels, next_task
from tests.adapters.models import (
    BASES,
    DIAGONAL,
    NETWORKS,
    adapted,
    bert,
    config,
    gpt2,
    inputs,
    mlp,
    move,
    output,
)

READER = """
import json, sys, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch, peft, transformers
root, *names = sys.argv[1:]
found = {}
for name in names:
    if name.startswith("own-"):
        try:
            peft.PeftConfig.from_pretrained(root + "/" + name)
            found[name] = {"error": "none"}
        except Exception as error:
            found[name] = {"error": repr(error)}
        continue
    kind = name.split("-")[0]
    auto = {"bert": "SequenceClassification", "gpt2": "CausalLM"}[kind]
    auto = getattr(transformers, "AutoModelFor" + auto)
    base = auto.from_pretrained(root + "/" + kind, attn_implementation="eager")
    batch = torch.load(root + "/" + kind + ".pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base, root + "/" + name).eval()
    with torch.no_grad():
        logits = model(**batch).logits
    merged = model.merge_and_unload()
    with torch.no_grad():
        after = merged(**batch).logits
    found[name] = {
        "logits": logits.flatten().tolist(),
        "merged": after.flatten().tolist(),
        "warnings": sorted({f"{w.category.__name__}: {w.message}" for w in caught}),
        "type": model.peft_config["default"].peft_type.value,
    }
assert "adapters" not in sys.modules and "blo" not in sys.modules
print("RESULT" + json.dumps(found))
"""
PRUNED = ["bert-autolora-pruned", "bert-sora-pruned", "gpt2-autolora-pruned"]
OURS = [
    *(f"bert-{form}" for form in (*DIAGONAL, *NETWORKS)),
    *("gpt2-mole", "gpt2-rows", "bert-sdlora-later"),
    *("gpt2-softmax", "gpt2-autolora", "bert-bidora", "gpt2-bidora"),
    *PRUNED,
]
STOCK = ["bert-lora", "gpt2-lora", "bert-dora", "gpt2-dora"]


def select(model: PeftModel, method: str) -> None:
    """Moves d so that every module loses a rank: a gate of zero, or shares below 1/3."""
    with torch.no_grad():
        for position, d in enumerate(levels(model).upper):
            if method == "sora":
                d[position % 3] = 0
            else:
                d.copy_(torch.tensor([1.0, -1.0, 0.5]).roll(position))


def truncate(model: PeftModel) -> None:
    """Sets the columns of B whose share is below 1/3 to zero."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name in levels(model).upper_names:
            columns = named[name.replace("lora_diagonal.default", "lora_B.default.weight")]
            columns[:, torch.softmax(named[name], 0) < 1 / 3] = 0


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the reader found in each checkpoint, with what the writer computed."""
    root = tmp_path_factory.mktemp("checkpoints")
    expected = {}
    for kind, build in {"bert": bert, "gpt2": gpt2}.items():
        build().save_pretrained(root / kind)
        torch.save(inputs(kind), root / f"{kind}.pt")
    for name in [*OURS, *STOCK]:
        kind, method = name.split("-", 1)
        if name in STOCK:
            settings = LoraConfig(
                r=3, use_dora=method == "dora", fan_in_fan_out=kind == "gpt2", **BASES[kind][1]
            )
            model = move(get_peft_model({"bert": bert, "gpt2": gpt2}[kind](), settings), 0.3)
        else:
            model = adapted(kind, method.removesuffix("-pruned").removesuffix("-later"), moved=0.3)
            if method == "sdlora-later":
                next_task(model, rank=2)
                move(model, 0.2)
        if name in PRUNED:
            select(model, method.removesuffix("-pruned"))
            export_lora(model, root / name, prune=True)
            if "autolora" in name:
                truncate(model)
        elif method in (*DIAGONAL, *NETWORKS, "sdlora-later"):
            export_lora(model, root / name)
        else:
            model.save_pretrained(root / name)
        expected[name] = output(model, inputs(kind)).flatten()
    BiLoraConfig(target_modules=["first"]).save_pretrained(root / "own-bilora")
    BiDoraConfig(target_modules=["first"], norm_axis="in").save_pretrained(root / "own-bidora")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", READER, str(root), *expected, "own-bilora", "own-bidora"],
        cwd=root,
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.split("RESULT")[1])
    return {name: {**case, "expected": expected.get(name)} for name, case in found.items()}


@pytest.mark.parametrize("name", [*OURS, *STOCK])
def test_stock_peft_computes_the_same(read: dict[str, dict[str, Any]], name: str) -> None:
    case = read[name]
    assert case["type"] == "LORA"
    for key in ("logits", "merged"):
        torch.testing.assert_close(torch.tensor(case[key]), case["expected"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_stock_peft_warns_no_more_than_for_its_own(
    read: dict[str, dict[str, Any]], name: str
) -> None:
    kind, method = name.split("-", 1)
    own = "dora" if method == "bidora" else "lora"
    assert read[name]["warnings"] == read[f"{kind}-{own}"]["warnings"]


@pytest.mark.parametrize("kind", ["BILORA", "BIDORA"])
def test_a_process_without_the_package_refuses_a_type_of_its_own(
    read: dict[str, dict[str, Any]], kind: str
) -> None:
    assert read[f"own-{kind.lower()}"]["error"] == f"KeyError('{kind}')"


@pytest.mark.parametrize("form", DIAGONAL)
def test_an_exported_folder_is_that_of_plain_lora(form: str, tmp_path: Path) -> None:
    ours = adapted("bert", form, moved=0.3)
    theirs = get_peft_model(bert(), LoraConfig(r=3, lora_alpha=6, **BASES["bert"][1]))
    export_lora(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for name in ("ours", "theirs"):
        files = sorted(file.name for file in (tmp_path / name).iterdir())
        assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    configs = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("ours", "theirs")
    ]
    for settings in configs:
        settings["target_modules"].sort()
    assert configs[0] == configs[1]
    weights = [
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs")
    ]
    assert {k: v.shape for k, v in weights[0].items()} == {
        k: v.shape for k, v in weights[1].items()
    }
    head = "base_model.model.classifier.weight"
    assert torch.equal(
        weights[0][head],
        dict(ours.named_parameters())["base_model.model.classifier.modules_to_save.default.weight"],
    )


def test_an_export_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = adapted("bert", "softmax", moved=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = model.peft_config["default"].to_dict()
    export_lora(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {**model.peft_config["default"].to_dict(), "base_model_name_or_path": None} == {
        **settings,
        "base_model_name_or_path": None,
    }
    assert model.peft_config["default"].peft_type == "BILORA"


def test_the_adapter_that_is_named_is_exported(tmp_path: Path) -> None:
    model = adapted("mlp", "real", moved=0.3)
    model.add_adapter("other", config("real", r=2, target_modules=["first"]))
    model.set_adapter("other")
    move(model, 0.3)
    model.set_adapter("default")
    export_lora(model, tmp_path / "first")
    export_lora(model, tmp_path / "second", adapter_name="other")
    first, second = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second")
    )
    assert {len(v) for k, v in first.items() if "lora_A" in k} == {3}
    assert {len(v) for k, v in second.items() if "lora_A" in k} == {2}
    named = {n: p.detach() for n, p in model.named_parameters()}
    prefix = "base_model.model.first."
    B, d = named[f"{prefix}lora_B.other.weight"], named[f"{prefix}lora_diagonal.other"]
    assert torch.equal(second[f"{prefix}lora_B.weight"], B * d)


def test_a_module_that_peft_leaves_out_is_not_lost_silently(tmp_path: Path) -> None:
    model = adapted("mlp", "real")
    model.add_adapter("second", config("real", target_modules=["first"]))  # as the module "second"
    with pytest.raises(ValueError, match="rename that adapter"):
        export_lora(model, tmp_path)


def test_an_export_replaces_an_older_one_and_leaves_no_other_file(tmp_path: Path) -> None:
    model = adapted("mlp", "real", moved=0.3)
    export_lora(model, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    move(model, 0.3)
    export_lora(model, tmp_path / "out")
    export_lora(model, tmp_path / "fresh")
    old, new = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "fresh")
    )
    assert all(torch.equal(old[key], new[key]) for key in new)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fresh", "out"]


def test_an_export_that_fails_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("mlp", "real", moved=0.3)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("adapters.results.export.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export_lora(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bidora_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"full rank.*save_pretrained"):
        export_lora(adapted("mlp", "bidora"), tmp_path)


def test_a_plain_lora_adapter_is_not_exported(tmp_path: Path) -> None:
    model = get_peft_model(mlp(), LoraConfig(target_modules=["first"]))
    with pytest.raises(ValueError, match="no singular values"):
        export_lora(model, tmp_path)


def test_misuse_of_export_names_the_argument(tmp_path: Path) -> None:
    model = adapted("mlp", "real")
    with pytest.raises(TypeError, match=r"model must be a peft.PeftModel, got Mlp"):
        export_lora(model.get_base_model(), tmp_path)
    with pytest.raises(ValueError, match=r"adapter_name must be one of \['default'\], got 'x'"):
        export_lora(model, tmp_path, adapter_name="x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="path must be a folder"):
        export_lora(model, tmp_path / "file")


def test_peft_refuses_to_convert_bidora() -> None:
    assert not adapted("mlp", "bidora").supports_lora_conversion()
    assert adapted("mlp", "softmax").supports_lora_conversion()


def test_an_adapter_that_is_not_finite_is_not_exported(tmp_path):
    model = get_peft_model(mlp(), config("softmax", target_modules=["first"]))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_A" in n)[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'default' is not exported: .*lora_A.* not finite"):
        export_lora(model, tmp_path / "out")
    assert not os.listdir(tmp_path)
