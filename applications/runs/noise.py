"""How large a difference of two accuracies has to be to mean something."""

import math
from collections.abc import Mapping
from typing import Any


def noise(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Half the 95 % interval of the difference of two test accuracies.

    1.96 sqrt((p (1 - p) + q (1 - q)) / n), as if each had test examples of its own; of the same n,
    on which both are right or wrong together, the interval is narrower.

    Args:
        first: the summary of a run; p is its ``test_metric``, an accuracy, and n the number of
            examples in its bins of calibration.
        second: likewise, q.
    """
    count = sum(each["count"] for each in first["reliability"])
    spread = sum(p * (1 - p) for p in (first["test_metric"], second["test_metric"]))
    return 1.96 * math.sqrt(spread / count)
