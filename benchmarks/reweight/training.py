"""Fine-tuning with weighted sources in this process: the phases of applications.reweight."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import set_seed

from applications.data.splits import Splits
from applications.families.family import Family
from applications.models.loading import precision
from applications.options.arguments import Options
from applications.options.weighting import WeightingOptions
from applications.runs.phases import Model, Workload
from applications.weighting.finetuning import weighted_phases, workload
from applications.weighting.gathering import Gathered
from applications.weighting.online import SourceWeights, online_phases
from blo import Engine


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        work: what it was made of.
        model: trained.
        weights: of the sources, where they were moved along it.
        num_gradients: gradients that were taken, of a batch each.
        num_products: Hessian products that were taken.
    """

    work: Workload
    model: Model
    weights: SourceWeights | None
    num_gradients: int
    num_products: int


def trained(
    options: Options,
    family: Family,
    gathered: Gathered,
    target: Splits,
    weights: Mapping[str, float] | None,
) -> Trained:
    """Train with these weights, or move them along the training where there are none, and finish on
    the target where the options say so.
    """
    weighting = options.weighting or WeightingOptions()
    moved: SourceWeights | None = None
    if weights is None:
        work, moved, phases = online_phases(options, family, gathered, target, weighting)
    else:
        work = workload(options, family, gathered, target, weights)
        phases = weighted_phases(work, target.train, weighting)
    num_gradients = num_products = 0
    for phase in phases:
        set_seed(options.run.seed)
        engine = Engine(phase.graph, precision=precision(options.model))
        engine.run(phase.updates.rounds)
        num_gradients += engine.num_gradients
        num_products += engine.num_products
        model = phase.model
    return Trained(work, model, moved, num_gradients, num_products)
