"""What a model predicts for a batch, in evaluation mode: by itself, or under several masks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from adapters import ensemble
from applications.data.batches import Batch
from applications.models.loading import device, precision
from applications.options.arguments import Options

MASK_SEED = 0


def predictor(model: nn.Module, options: Options) -> Callable[[Batch], Tensor]:
    """A function from a batch, without labels, to logits in float32 on the CPU.

    Under LoRA Dropout with ``ensemble``, the logarithm of the mean probabilities under
    ``num_masks`` masks; for one output (regression) the mean output. Every batch is predicted under
    the same masks, so that a prediction does not depend on the rows beside it.
    """
    adapter, place = options.adapter, device(options.model)
    if not (adapter.masks and adapter.ensemble):

        def predict(batch: Batch) -> Tensor:
            logits: Tensor = model(**moved(batch, place)).logits
            return logits.float().cpu()

        return predict

    one_output = getattr(model.config, "num_labels", 2) == 1

    def mean_prediction(batch: Batch) -> Tensor:
        inputs = moved(batch, place)
        torch.manual_seed(MASK_SEED)  # whose state `evaluating` restores
        found = ensemble(
            model,
            lambda: model(**inputs).logits.float(),
            num_masks=adapter.num_masks,
            average="logits" if one_output else "probabilities",
        )
        return (found if one_output else found.log()).cpu()

    return mean_prediction


def moved(batch: Batch, place: torch.device) -> Batch:
    """The batch on a device, without its labels."""
    return {name: value.to(place) for name, value in batch.items() if name != "labels"}


@contextmanager
def evaluating(model: nn.Module, options: Options) -> Iterator[None]:
    """Evaluation mode, no gradients, autocast as in training, and a random state of its own.

    Mode and random state are restored, so that an evaluation in between does not change a training
    run.
    """
    place, dtype = device(options.model), precision(options.model)
    was_training = model.training
    model.eval()
    cuda = [place] if place.type == "cuda" else []
    context = torch.autocast(place.type, dtype) if dtype else nullcontext()
    try:
        with torch.no_grad(), torch.random.fork_rng(cuda), context:
            yield
    finally:
        model.train(was_training)
