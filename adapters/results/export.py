"""Checkpoints that load without this package."""

import json
import os
import tempfile
from dataclasses import fields
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.glue.adapted import adapted_layers
from adapters.glue.factors import factors
from adapters.glue.masks import MASK_LOGIT, mask_logit
from adapters.glue.norms import widen
from adapters.glue.registry import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from adapters.glue.variants import BiLevelVariant
from adapters.methods.diagonal import DiagonalVariant
from adapters.training.rank_selection import alpha_of_rank, alpha_pattern, rank_pattern

__all__ = ["export_lora"]


def export_lora(
    model: PeftModel,
    path: str | os.PathLike[str],
    adapter_name: str | None = None,
    *,
    prune: bool = False,
) -> Path:
    """Return the folder of a plain PEFT LoRA checkpoint that computes what the adapter computes.

    The singular values are folded into B, ``B <- B diag(g(d))``: same rank, same scale, no
    approximation. So is the mean of LoRA Dropout's masks, ``B <- (1 - p)^2 B``: the checkpoint is
    the adapter with its masks off; that of a masked BiDoRA adapter is a DoRA checkpoint. Heads in
    ``modules_to_save`` and trained biases are included; a learned weight decay, which computes
    nothing, is not. Where the factors are those of several experts or tasks, the rank is the sum of
    theirs; what a network makes is evaluated. The files appear complete or not at all; files of the
    same name are replaced.

    Args:
        model: a PEFT model with a BiLoRA, AutoLoRA, SoRA, BeamLoRA, MoLE, SD-LoRA, RepLoRA or LoRA
            Dropout adapter, with one of LoRA with learned weight decay, or of BiDoRA with masks.
        path: the folder to write.
        adapter_name: the adapter; the active one if None.
        prune: keep only the ranks that `ranks` counts. Exact where the others are zero, as SoRA's
            are; truncates AutoLoRA to what it has selected. The checkpoint then has a
            ``rank_pattern`` and an ``alpha_pattern``, which not every program but PEFT reads.

    Raises:
        TypeError: if `model` is not a ``PeftModel``.
        ValueError: if the adapter is not one that folds into LoRA, or holds values that are not
            finite; nothing is written then.

    Example:
        >>> import tempfile, torch
        >>> from adapters import BiLoraConfig, export_lora
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(file.name for file in export_lora(model, folder).iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"model must be a peft.PeftModel, got {type(model).__name__}; wrap it with "
            "get_peft_model"
        )
    adapter = model.active_adapter if adapter_name is None else adapter_name
    _check_foldable(model, adapter)
    path = Path(path)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"path must be a folder, got {path}, and {part} is a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as staging:
        folder = Path(staging, "adapter")
        model.save_pretrained(str(folder), selected_adapters=[adapter])
        source = folder if adapter == "default" else folder / adapter
        weights, config = source / SAFETENSORS_WEIGHTS_NAME, source / CONFIG_NAME
        folded = _folded(model, adapter, load_file(weights), prune=prune)
        _refuse_not_finite(folded, adapter)
        save_file(folded, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        (folder / CONFIG_NAME).write_text(_plain(model, adapter, config.read_text(), prune=prune))
        path.mkdir(exist_ok=True)
        # The configuration comes last: a folder without it is not a checkpoint.
        for name in ("README.md", SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
            os.replace(folder / name, path / name)
    return path


def _check_foldable(model: PeftModel, adapter: str) -> None:
    if adapter not in model.peft_config:
        raise ValueError(
            f"adapter_name must be one of {sorted(model.peft_config)}, got {adapter!r}"
        )
    for _, _, layer, variant in adapted_layers(model, BiLevelVariant, adapter):
        if variant.unexportable:
            raise ValueError(f"adapter {adapter!r} {variant.unexportable}")
        if variant.folded_scale(layer, adapter) is not None or variant.masks is not None:
            return
    if getattr(model.peft_config[adapter], "use_dora", False):
        raise ValueError(
            f"adapter {adapter!r} cannot become LoRA: its change of the weights, "
            "diag(m / n) (W0 + s B A) - W0, has full rank. It needs no export: "
            "model.save_pretrained(path) writes a plain PEFT DoRA checkpoint; for a program "
            "without DoRA, save model.merge_and_unload()"
        )
    raise ValueError(
        f"adapter {adapter!r} has no singular values to fold; model.save_pretrained(path) saves it"
    )


def _folded(
    model: PeftModel, adapter: str, saved: dict[str, Tensor], *, prune: bool
) -> dict[str, Tensor]:
    folded = dict(saved)
    for name, _, layer, variant in adapted_layers(model, BiLevelVariant, adapter):
        key = f"{name}.lora_B.weight"
        if key not in saved:
            raise ValueError(
                f"module {name!r} of adapter {adapter!r} is not in the checkpoint that PEFT wrote: "
                "it leaves out modules that are called as another adapter; rename that adapter"
            )
        pair = variant.side_by_side(layer, adapter, factors(layer, adapter))
        own = pair.A is factors(layer, adapter).A
        B = saved[key] if own else pair.B.detach()
        if not own:
            folded[f"{name}.lora_A.weight"] = pair.A.detach().contiguous()
        dtype = widen(B.dtype)
        values = torch.ones(1, dtype=dtype, device=B.device)
        scale = variant.folded_scale(layer, adapter)
        if scale is not None:
            values = scale.detach().to(B.device, dtype)
            for container in variant.containers:
                folded.pop(f"{name}.{container}", None)  # kept by another layer where it is shared
        if variant.masks is not None:
            logit = mask_logit(layer, adapter)
            if logit is not None:
                del folded[f"{name}.{MASK_LOGIT}"]
                logit = logit.detach().to(B.device, dtype)
            values = values * variant.masks.expected(logit)
        folded[key] = (B * values).to(B.dtype).contiguous()
        if prune and isinstance(variant, DiagonalVariant):
            kept = variant.kept(layer, adapter).nonzero().flatten().to(B.device)
            if not len(kept):  # PEFT's lowest rank is 1; the column of B is zero
                kept = torch.zeros(1, dtype=torch.long, device=B.device)
            folded[key] = folded[key][:, kept].contiguous()
            key = f"{name}.lora_A.weight"
            folded[key] = folded[key][kept].contiguous()
    return folded


def _refuse_not_finite(folded: dict[str, Tensor], adapter: str) -> None:
    for name, value in folded.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"adapter {adapter!r} is not exported: {name} holds values that are not finite, "
                "since the training diverged; export a checkpoint from before"
            )


def _plain(model: PeftModel, adapter: str, saved: str, *, prune: bool) -> str:
    own = {field.name for field in fields(model.peft_config[adapter])}
    own -= {field.name for field in fields(LoraConfig)}
    plain = {name: value for name, value in json.loads(saved).items() if name not in own}
    _, _, layer, variant = next(adapted_layers(model, BiLevelVariant, adapter))
    before = factors(layer, adapter)
    rank = variant.side_by_side(layer, adapter, before).A.shape[0]
    if rank != before.A.shape[0]:  # in all layers alike; the scale stays
        plain["r"] = rank
        wider = alpha_of_rank(1.0, layer, adapter, rank)
        plain["lora_alpha"] = wider * plain["lora_alpha"]
        plain["alpha_pattern"] = {k: wider * v for k, v in plain["alpha_pattern"].items()}
    if prune:
        plain["rank_pattern"] = rank_pattern(model, adapter)
        plain["alpha_pattern"] = alpha_pattern(model, adapter)
    return json.dumps({**plain, "peft_type": "LORA"}, indent=2, sort_keys=True)
