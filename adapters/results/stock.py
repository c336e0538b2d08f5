"""Adapters in the form that PEFT loads without this package."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel

from adapters.glue.registry import ExternalPeftType
from adapters.results.export import export_lora

__all__ = ["export_stock", "is_stock"]


def is_stock(model: PeftModel, adapter_name: str | None = None) -> bool:
    """Return whether ``model.save_pretrained`` writes what PEFT loads without this package.

    So it is for PEFT's own adapters, and for BiDoRA, whose checkpoint is one of DoRA (unless it has
    masks, or one magnitude for each input).

    Example:
        >>> import torch
        >>> from adapters import BiDoraConfig, is_stock
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> is_stock(get_peft_model(net, BiDoraConfig(r=2, target_modules=["0"])))
        True
    """
    adapter = model.active_adapter if adapter_name is None else adapter_name
    return not isinstance(model.peft_config[adapter].peft_type, ExternalPeftType)


def export_stock(
    model: PeftModel, path: str | os.PathLike[str], adapter_name: str | None = None
) -> Path:
    """Return the folder of a checkpoint that PEFT loads without this package.

    It computes what the adapter computes in evaluation mode: BiDoRA as DoRA, PEFT's own adapters as
    they are, all others as the plain LoRA of `export_lora`. AdaLoRA keeps the ranks that have been
    pruned and are no longer zero, which PEFT's own ``save_pretrained`` would leave out.

    Args:
        model: a PEFT model.
        path: the folder to write; files of the same name are replaced.
        adapter_name: the adapter; the active one if None.

    Raises:
        ValueError: if no checkpoint of PEFT's own computes what the adapter does, with the reason
            and what can be saved instead; nothing is written then.

    Example:
        >>> import tempfile, torch
        >>> from adapters import SoraConfig, export_stock
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, SoraConfig(r=2, target_modules=["0"]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = export_stock(model, folder) / "adapter_config.json"
        ...     '"peft_type": "LORA"' in saved.read_text()
        True
    """
    adapter = model.active_adapter if adapter_name is None else adapter_name
    if not is_stock(model, adapter):
        return export_lora(model, path, adapter)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as staging,
        _ranks_as_they_are(model, adapter),
    ):
        model.save_pretrained(staging, selected_adapters=[adapter])
        written = Path(staging) if adapter == "default" else Path(staging, adapter)
        path.mkdir(exist_ok=True)
        for file in written.iterdir():
            if file.is_file():
                shutil.move(file, path / file.name)
    return path


@contextmanager
def _ranks_as_they_are(model: PeftModel, adapter: str) -> Iterator[None]:
    """Save every rank of an AdaLoRA adapter whose pattern leaves out singular values not zero.

    So they are between two prunings, after which training goes on, and where values of another
    step have been put back.
    """
    config: Any = model.peft_config[adapter]
    pattern = config.rank_pattern if isinstance(config, AdaLoraConfig) else None
    values = {
        name.removesuffix(f".{adapter}"): value.detach()
        for name, value in model.named_parameters()
        if "lora_E" in name
    }
    fits = True
    for key, kept in (pattern or {}).items():
        name = key.removesuffix(f".{adapter}")
        (value,) = (value for own, value in values.items() if f".{own}".endswith(f".{name}"))
        fits &= not value.flatten()[~torch.tensor(kept, device=value.device)].any()
    if fits:
        yield
        return
    config.rank_pattern = None
    try:
        yield
    finally:
        config.rank_pattern = pattern
