"""Adapted models that cannot be trained, or only in part, without a word from PEFT."""

import warnings
from collections.abc import Iterable

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

__all__ = ["refuse_unused", "unmatched", "warn_of_frozen_head", "warn_of_half"]

HEADS = ("classifier", "score", "qa_outputs", "classification_head")
FUSED = ("linear1", "linear2")


def unmatched(names: object, adapted: Iterable[str]) -> list[str]:
    """Return those of ``target_modules`` that no adapted module answers to; PEFT skips them.

    Args:
        names: what was given: a list is looked through, a pattern is not.
        adapted: the names of the adapted modules.
    """
    if not isinstance(names, list | tuple | set):
        return []
    found = list(adapted)
    return sorted(n for n in names if not any(f".{module}".endswith(f".{n}") for module in found))


def refuse_unused(model: nn.Module) -> None:
    """Raise if adapters of a model take no part in what it computes.

    Raises:
        ValueError: if they are merged into the weights, or sit in a module of torch that reads the
            weights of the adapted layer without calling it: ``out_proj`` of
            ``nn.MultiheadAttention``, and in evaluation mode, on its fused path, ``linear1`` and
            ``linear2`` of ``nn.TransformerEncoderLayer``.
    """
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise ValueError(
                f"the adapter of {name!r} is merged into its weights, so that training it changes "
                "nothing; call model.unmerge_adapter() before"
            )
        if isinstance(module, nn.MultiheadAttention) and isinstance(
            module.out_proj, BaseTunerLayer
        ):
            raise ValueError(
                f"target_modules names {name}.out_proj, whose adapter nn.MultiheadAttention never "
                "calls: it reads the weight alone; leave out_proj out"
            )
        if (
            isinstance(module, nn.TransformerEncoderLayer)
            and torch.backends.mha.get_fastpath_enabled()
        ):
            for part in FUSED:
                if isinstance(getattr(module, part), BaseTunerLayer):
                    raise ValueError(
                        f"target_modules names {name}.{part}, whose adapter the fused path of "
                        "nn.TransformerEncoderLayer leaves out in evaluation mode; call "
                        "torch.backends.mha.set_fastpath_enabled(False) before, or leave it out"
                    )


def warn_of_half(model: nn.Module) -> None:
    """Warn where adapted weights are float16, in which losses and gradients leave its range."""
    for name, module in model.named_modules():
        weight = (
            getattr(module.get_base_layer(), "weight", None)
            if isinstance(module, BaseTunerLayer)
            else None
        )
        if isinstance(weight, torch.Tensor) and weight.dtype == torch.float16:
            warnings.warn(
                f"the weight of {name!r} is float16, which ends at 65504 and has no loss scaling "
                "here: losses and second derivatives become infinite or zero; load the model in "
                "float32 or bfloat16",
                UserWarning,
                stacklevel=3,
            )
            return


def warn_of_frozen_head(model: nn.Module) -> None:
    """Warn where the head of a classifier stays as it is, which task_type decides."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    kind = type(base).__name__
    if "Classification" not in kind and "QuestionAnswering" not in kind:
        return
    for name, part in base.named_children():
        held = list(part.parameters())
        if name in HEADS and held and not any(p.requires_grad for p in held):
            task = "TOKEN_CLS" if "Token" in kind else "SEQ_CLS"
            warnings.warn(
                f"{name!r}, the head of {kind}, is frozen: a new one stays random; give the "
                f"adapter's config task_type=TaskType.{task}, or modules_to_save=[{name!r}]",
                UserWarning,
                stacklevel=3,
            )
