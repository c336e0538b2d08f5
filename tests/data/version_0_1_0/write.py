"""Wrote the files beside it, run from a checkout of version 0.1.0: ``python write.py FOLDER``.

Adapters as PEFT saves them, states of engines as ``torch.save`` does, the losses of two more
rounds, and in ``expected.safetensors`` the frozen model, inputs, what every adapter computed for
one of them and where the two rounds led.
"""

import json
import sys
from pathlib import Path

import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import nn

import adapters
from blo import Engine, cg, soba

CONFIGS = {
    "bilora_softmax": adapters.BiLoraConfig(),
    "bilora_rank": adapters.BiLoraConfig(scale_by_rank=True),
    "bilora_real": adapters.BiLoraConfig(values="real"),
    "bilora_tied": adapters.BiLoraConfig(values="real", tied=True),
    "bilora_binary": adapters.BiLoraConfig(values="binary"),
    "bilora_masked": adapters.BiLoraConfig(mask_rate=0.3, learn_mask_rate=True),
    "bidora": adapters.BiDoraConfig(),
    "bidora_in": adapters.BiDoraConfig(norm_axis="in"),
    "bidora_masked": adapters.BiDoraConfig(mask_rate=0.3),
    "autolora": adapters.AutoLoraConfig(threshold="logits"),
    "sora": adapters.SoraConfig(),
    "sora_upper": adapters.SoraConfig(gate_level="upper"),
    "dropout": adapters.LoraDropoutConfig(mask_rate=0.4, mask_inverted=True),
    "dropout_learned": adapters.LoraDropoutConfig(mask_rate=0.4, learn_mask_rate=True),
    "decay": adapters.LoraWeightDecayConfig(initial_weight_decay=0.25),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def adapted(config):
    config.r, config.lora_alpha, config.target_modules = 2, 6, {"0", "2"}
    torch.manual_seed(1)
    model = get_peft_model(network(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def engine(model, optimizer, batches):
    split = adapters.levels(model)
    sgd = optimizer == "sgd"
    upper = torch.optim.SGD(split.upper, 0.1, momentum=0.9)
    lower = torch.optim.SGD(split.lower, 0.1) if sgd else torch.optim.AdamW(split.lower, 0.01)
    graph = adapters.two_level(
        model,
        loss=lambda x: model(x).square().mean(),
        upper_batches=list(batches[:2]),
        lower_batches=list(batches[2:]),
        upper_optimizer=upper if sgd else torch.optim.AdamW(split.upper, 0.01),
        lower_optimizer=lower,
        method=soba(0.1) if sgd else cg(4, damping=1.0),
        steps=2,
        lower_scheduler=torch.optim.lr_scheduler.LambdaLR(lower, lambda step: 0.9**step),
    )
    return Engine(graph)


def main(folder):
    torch.manual_seed(2)
    x, batches = torch.randn(3, 4), torch.randn(5, 5, 4)
    expected = {f"base.{n}": p.clone() for n, p in network().state_dict().items()}
    expected |= {"x": x, "batches": batches}
    for name, config in CONFIGS.items():
        model = adapted(config)
        model.save_pretrained(folder / name)
        (folder / name / "README.md").unlink()
        with torch.no_grad():
            expected[f"output.{name}"] = model(x)
    for optimizer in ("sgd", "adamw"):
        model = adapted(adapters.BiLoraConfig(values="real"))
        made = engine(model, optimizer, batches)
        made.run(3)
        torch.save(made.state_dict(), folder / f"engine_{optimizer}.pt")
        losses = [record.losses for record in made.rounds(2)]
        (folder / f"engine_{optimizer}.json").write_text(json.dumps(losses) + "\n")
        for n, p in model.named_parameters():
            if p.requires_grad:
                expected[f"{optimizer}.{n}"] = p.detach().clone()
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
