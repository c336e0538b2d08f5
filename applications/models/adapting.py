"""The adapter of each method, put on a base model."""

import math
from collections.abc import Mapping
from typing import Any

from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters import (
    AutoLoraConfig,
    BiDoraConfig,
    BiLoraConfig,
    LoraDropoutConfig,
    LoraWeightDecayConfig,
)
from applications.errors import UsageError
from applications.options.arguments import MASKING_METHODS, AdapterOptions

DEFAULT_MASK_RATE = 0.5


def adapter_config(options: AdapterOptions, task_type: TaskType, *, num_steps: int) -> PeftConfig:
    """The PEFT configuration of the method.

    Args:
        options: the method and its size.
        task_type: PEFT's name of the head.
        num_steps: updates in all; AdaLoRA's budget falls between 10 % and 70 % of them.

    Raises:
        UsageError: the adapter refuses a value.
    """
    common: dict[str, Any] = {
        "task_type": task_type,
        "r": options.lora_r,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": options.lora_target_modules,
    }
    if options.lora_target_modules == ["all-linear"]:
        common["target_modules"] = "all-linear"
    method = str(options.method)
    if method in MASKING_METHODS:
        rate = options.mask_rate
        if rate is None and method == "lora_dropout":
            rate = DEFAULT_MASK_RATE
        common |= {"mask_rate": rate or 0.0, "learn_mask_rate": options.learn_mask_rate}
    if method == "bilora" and options.lora_r == 1 and options.singular_values == "softmax":
        raise UsageError(
            "argument --lora_r: one softmax value is always 1, got 1; use a rank of at least 2, "
            "or --singular_values real"
        )
    try:
        if method == "bilora":
            return BiLoraConfig(
                values=options.singular_values,
                scale_by_rank=options.scale_by_rank,
                tied=options.tied_values,
                **common,
            )
        if method == "bidora":
            return BiDoraConfig(norm_axis=options.norm_axis, **common)
        if method == "autolora":
            return AutoLoraConfig(**common)
        if method == "lora_dropout":
            return LoraDropoutConfig(**common)
        if method == "lora_weight_decay":
            start = options.initial_weight_decay
            return LoraWeightDecayConfig(initial_weight_decay=start, **common)
        if method == "adalora":
            return adalora_config(common, num_steps)
        return LoraConfig(use_dora=method == "dora", **common)
    except ValueError as error:
        raise UsageError(f"method {method}: {error}") from error


def adalora_config(common: Mapping[str, Any], num_steps: int) -> AdaLoraConfig:
    """AdaLoRA that starts at one and a half times the rank and prunes to the rank on average.

    1.5, and an orthogonality penalty of 0.1, are the choices of the paper and its code; so that the
    scale stays what ``lora_alpha`` / ``lora_r`` says, alpha is multiplied by the same factor.

    Reference: Zhang et al. (2023), arXiv:2303.10512.
    """
    settings = dict(common)
    rank = settings.pop("r")
    initial = math.ceil(1.5 * rank)
    settings["lora_alpha"] *= initial / rank
    return AdaLoraConfig(
        init_r=initial,
        target_r=rank,
        tinit=num_steps // 10,
        tfinal=num_steps - round(0.7 * num_steps),
        deltaT=max(1, num_steps // 100),
        total_step=num_steps,
        orth_reg_weight=0.1,
        **settings,
    )


def adapted(
    base: PreTrainedModel, config: PeftConfig | None, options: AdapterOptions
) -> PreTrainedModel | PeftModel:
    """The base model with an adapter, or itself where the method trains all weights.

    Raises:
        UsageError: the modules to adapt are not there.
    """
    if config is None:
        return base
    if isinstance(config, LoraConfig) and any(isinstance(m, Conv1D) for m in base.modules()):
        config.fan_in_fan_out = True  # as PEFT would, with a warning
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        modules = options.lora_target_modules
        raise UsageError(f"argument --lora_target_modules: {error} (got {modules})") from error
    assert isinstance(model, PeftModel)
    return model
