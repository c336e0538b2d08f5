"""Which examples pull the weight of their source up, and which down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset
from torch import Tensor

from applications.weighting.gathering import Gathered

LONGEST = 160


@dataclass(frozen=True)
class Pull:
    """One example of a source: its text, its answer, and its pull; up where that is positive."""

    text: str
    answer: str
    pull: float


def explained(
    found: Tensor,
    places: Sequence[tuple[int, int]],
    gathered: Gathered,
    *,
    number: int,
) -> dict[str, dict[str, list[Pull]]]:
    """For each source the examples with the largest pulls ``up`` and ``down``; that of a tagged
    sentence is the sum over its words.

    Args:
        found: the `applications.weighting.pull.pulls`.
        places: group and row of each.
        gathered: where the texts are.
        number: examples each way.
    """
    whole: dict[tuple[int, int], float] = {}
    for place, pull in zip(places, found.tolist(), strict=True):
        whole[place] = whole.get(place, 0.0) + pull

    def shown(place: tuple[int, int]) -> Pull:
        group, row = place
        examples = gathered.groups[group].examples
        return Pull(*told(examples, row, gathered.task.label_names), whole[place])

    result: dict[str, dict[str, list[Pull]]] = {}
    for name in gathered.names:
        mine = [place for place in whole if name in gathered.groups[place[0]].members]
        order = sorted(mine, key=lambda place: -whole[place])
        result[name] = {
            "up": [shown(p) for p in order[:number] if whole[p] > 0],
            "down": [shown(p) for p in order[::-1][:number] if whole[p] < 0],
        }
    return result


def told(examples: Dataset, row: int, names: Sequence[str]) -> tuple[str, str]:
    """The text of an example, cut where it is long, and its answer in words."""
    values = examples[row]
    *inputs, answer = examples.column_names
    parts = [v if isinstance(v, str) else " ".join(v) for v in (values[name] for name in inputs)]
    text, given = " | ".join(parts), values[answer]
    if isinstance(given, list):
        given = " ".join(names[tag] for tag in given)
    elif names:
        given = names[given]
    return text if len(text) <= LONGEST else text[:LONGEST] + " ...", str(given)


def as_data(
    values: Mapping[str, Mapping[str, Sequence[Pull]]],
) -> dict[str, dict[str, list[dict[str, object]]]]:
    """The same for weights.json."""
    return {
        name: {way: [vars(pull) for pull in pulls_] for way, pulls_ in ways.items()}
        for name, ways in values.items()
    }
