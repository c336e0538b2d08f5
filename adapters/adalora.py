"""Stock PEFT's AdaLoRA in a training loop: its rank allocator really called.

AdaLoRA prunes the singular values of least importance on a schedule, in
``model.base_model.update_and_allocate(step)``, which its user's loop has to call after every
optimizer step while the gradients are still there. Many loops do not, and then AdaLoRA is a LoRA of
fixed rank. `Allocation` calls it from the optimizer.

Reference: Zhang et al. (2023), arXiv:2303.10512.
"""

from typing import Any

import torch
from peft import AdaLoraModel, PeftModel

__all__ = ["Allocation"]


class Allocation:
    """Calls AdaLoRA's rank allocator after every step of an optimizer.

    Args:
        optimizer: Trains the adapter; `Engine` or any other loop may call it.
        model: A PEFT model with an active AdaLoRA adapter, whose config has ``total_step`` set.

    Attributes:
        step: The number of steps allocated so far; set it when a run is resumed.

    Raises:
        ValueError: The model has no AdaLoRA adapter.

    Example:
        >>> import torch
        >>> from adapters import Allocation
        >>> from peft import AdaLoraConfig, get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> config = AdaLoraConfig(total_step=10, tinit=1, tfinal=1, target_modules=["0"])
        >>> model = get_peft_model(net, config)
        >>> optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        >>> allocation = Allocation(optimizer, model)
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> allocation.step
        1
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: PeftModel) -> None:
        if not isinstance(model.base_model, AdaLoraModel):
            raise ValueError(
                f"model must hold an AdaLoRA adapter, got {type(model.base_model).__name__}; wrap "
                "it with get_peft_model(model, AdaLoraConfig(...))"
            )
        self.step = 0
        self._model = model.base_model
        self._handle = optimizer.register_step_post_hook(self._allocate)

    def _allocate(self, *_: Any) -> None:
        self.step += 1
        self._model.update_and_allocate(self.step)

    def remove(self) -> None:
        """Stops calling the allocator."""
        self._handle.remove()
