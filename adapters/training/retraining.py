"""The phase after a search: upper parameters fixed, the lower ones trained anew on all data."""

from typing import Any

from peft import PeftModel
from torch import nn

from adapters.glue.adapted import adapted_layers, restart_saved_modules
from adapters.glue.factors import restart_factors
from adapters.glue.variants import BiLevelVariant
from adapters.training.partition import levels

__all__ = ["retrain"]


def retrain(
    model: PeftModel, *, restart: bool = True, adapter_name: str | None = None
) -> list[nn.Parameter]:
    """Freeze the upper parameters that the search has found; return what is left to train.

    The second phase of BiDoRA: ``min L(A, B, m)`` over A, B and the heads on all the data, the
    magnitudes m fixed; a graph of one `Problem`, or any training loop. For BiLoRA, whose paper has
    no such phase, the singular values are fixed in the same way.

    Args:
        model: a model with an active bi-level adapter, after the search.
        restart: start A, B and the heads in ``modules_to_save`` as a new adapter does, as the
            authors' code does (with new random values for A); if False, go on from where they are.
        adapter_name: the adapter; needed where several are active.

    Returns:
        The lower parameters, for the optimizer of the second phase.

    Raises:
        ValueError: if no bi-level adapter is active; or its values cannot start anew, because
            ``init_lora_weights=False``, or because biases or tokens of the base model were trained.

    Example:
        >>> import torch
        >>> from adapters import BiDoraConfig, retrain
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BiDoraConfig(r=2, target_modules=["0"]))
        >>> optimizer = torch.optim.AdamW(retrain(model), lr=1e-3)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['base_model.model.0.lora_A.default.weight', 'base_model.model.0.lora_B.default.weight']

    Reference: Qin, Zhang and Xie (2025), arXiv:2410.09758.
    """
    split = levels(model, adapter_name)
    found = list(adapted_layers(model, BiLevelVariant, adapter_name))
    adapter = found[0][1]
    if restart:
        config: Any = model.peft_config[adapter]
        for option, fresh in (("bias", "none"), ("trainable_token_indices", None)):
            if getattr(config, option) != fresh:
                raise ValueError(
                    f"restart=True needs {option}={fresh!r}, got {getattr(config, option)!r}: what "
                    "the base model started from is not kept; use restart=False"
                )
        if config.init_lora_weights is False:
            raise ValueError(
                "restart=True needs init_lora_weights, got False; use restart=False, or set "
                "model.peft_config[adapter].init_lora_weights = True"
            )
        for _, _, layer, _ in found:
            restart_factors(layer, adapter, config.init_lora_weights)
        restart_saved_modules(model, adapter)
    for parameter in split.upper:
        parameter.requires_grad_(False)
    return split.lower
