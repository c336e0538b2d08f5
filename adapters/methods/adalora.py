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

from adapters.methods.hooks import StepHook

__all__ = ["Allocation"]

# The rank allocator's moving averages, by parameter name.
AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class Allocation(StepHook):
    """Calls AdaLoRA's rank allocator after every step of an optimizer.

    Args:
        optimizer: trains the adapter; `Engine` or any other loop may call it.
        model: a PEFT model with an active AdaLoRA adapter, whose config has ``total_step`` set.

    Raises:
        ValueError: if the model has no AdaLoRA adapter, or no step before its final ones.

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
        config: Any = model.peft_config[model.active_adapter]
        steps = config.total_step - config.tfinal
        if steps < 2:
            raise ValueError(
                f"total_step - tfinal must be at least 2, got {steps}: ranks are chosen by what "
                "was measured in the steps before"
            )
        super().__init__(optimizer, after=self._allocate)
        self._model = model.base_model

    @property
    def step(self) -> int:
        """The number of steps allocated so far."""
        return self.num_steps

    def _allocate(self, optimizer: torch.optim.Optimizer) -> None:
        self._model.update_and_allocate(self.num_steps + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the allocator's running importance of every singular value."""
        allocator = self._allocator()
        averages = {name: dict(getattr(allocator, name)) for name in AVERAGES}
        return {"step": self.num_steps, "rank_pattern": self._config().rank_pattern, **averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            KeyError: if the state is not of this class.
        """
        allocator = self._allocator()
        places = {name: p.device for name, p in self._model.model.named_parameters()}
        for average in AVERAGES:
            values = {name: v.to(places[name]) for name, v in state[average].items()}
            setattr(allocator, average, values)
        self._config().rank_pattern = state["rank_pattern"]
        self.num_steps = state["step"]

    def _config(self) -> Any:
        return self._model.peft_config[self._model.trainable_adapter_name]

    def _allocator(self) -> Any:
        return self._model.rankallocator
