"""Frozen features: what the pre-trained model sees in each example, once and for all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from applications.data.batches import Collator, Encoded
from applications.families.prediction import evaluating, moved
from applications.models.loading import device
from applications.options.arguments import Options
from applications.weighting.heads import Examples

IGNORED = -100


def frozen(
    model: nn.Module, rows: Encoded, collator: Collator, options: Options, *, words: bool
) -> tuple[Tensor, Tensor]:
    """The features of all rows, ``(n, width)`` in float32, and the row each belongs to ``(n,)``.

    A text is the mean of its last hidden states over its tokens; with ``words`` every token that
    has a label is an example of its own. The model's head is not asked.
    """
    backbone = getattr(model, "base_model", model)
    place = device(options.model)
    backbone.to(place)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
    size = options.run.per_device_eval_batch_size
    found: list[Tensor] = []
    owners: list[Tensor] = []
    with evaluating(backbone, options):
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            batch = collator([rows[number] for number in chosen])
            hidden = backbone(**moved(batch, place)).last_hidden_state.float().cpu()
            if words:
                marked = batch["labels"] != IGNORED
                found.append(hidden[marked])
                owners.append(torch.tensor(chosen).repeat_interleave(marked.sum(1)))
            else:
                mask = batch["attention_mask"][..., None]
                found.append((hidden * mask).sum(1) / mask.sum(1))
                owners.append(torch.tensor(chosen))
    owner = torch.cat(owners)
    by_row = owner.argsort(stable=True)
    return torch.cat(found)[by_row], owner[by_row]


def answers(labels: Sequence[float], classes: int) -> Tensor:
    """One-hot rows ``(n, classes)``, or decimals ``(n, 1)`` where there are no classes."""
    if classes == 1:
        return torch.tensor(labels, dtype=torch.float64)[:, None]
    return nn.functional.one_hot(torch.tensor(labels).long(), classes).double()


@dataclass(frozen=True)
class Projection:
    """Features centred, turned to their principal axes, cut to the first ``kept`` of them, scaled
    to a mean square length of 1, with a constant 1 behind.

    One scale for all axes, so that the ridge of a head bears on directions in which examples differ
    little, as it does on the features themselves.
    """

    centre: Tensor
    axes: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor, *, kept: int) -> "Projection":
        """The projection for these features ``(n, width)``, from no label."""
        centre = features.double().mean(0)
        away = features.double() - centre
        covariance = away.T @ away / len(features)
        values, vectors = torch.linalg.eigh(covariance)
        number = min(kept, features.shape[1])
        axes = vectors.flip(1)[:, :number]
        return cls(centre, axes, values.flip(0)[:number].sum().clamp(min=1e-30).rsqrt())

    def __call__(self, features: Tensor) -> Tensor:
        """``(n, kept + 1)`` in float64."""
        found = (features.double() - self.centre) @ self.axes * self.scale
        return torch.cat([found, found.new_ones(len(found), 1)], 1)


def examples(features: Tensor, targets: Tensor, projection: Projection) -> Examples:
    """Projected features with their answers."""
    return Examples(projection(features), targets)
