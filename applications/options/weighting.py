"""The options of applications.reweight that the other commands do not have."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from applications.options.arguments import (
    option,
    require,
    require_all,
    require_untouched,
    separated,
)

ROUTES = ("features", "online")
HELPFUL = "helpful"
FORMS = (HELPFUL, "softmax", "non_negative", "floor")
FAMILIES = ("nlu", "token_classification", "nlg")
CONTROLS = (
    "union",
    "target_only",
    "weighted_union",
    "two_stage",
    "agreement",
    "helpful",
    "agreeing_examples",
    "greedy",
    "random_search",
    "uniform",
    "oracle",
)
ON_FEATURES = (
    "max_weight_steps",
    "weight_folds",
    "weight_seeds",
    "ridge",
    "num_axes",
    "features_per_source",
)
NAME = re.compile(r"[\w.+-]+")
NAMED = re.compile(r"[^/=]+=")


def whole_paths(pieces: list[str] | None) -> list[str] | None:
    """What was given between commas, each NAME=PATH whole where its path holds commas."""
    found: list[str] = []
    for piece in pieces or ():
        if found and not NAMED.match(piece):
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return found or None


@dataclass(frozen=True)
class WeightingOptions:
    """Which sources are weighed, by what target, and how."""

    _argument_group_name: ClassVar[str] = "weighting"

    sources: list[str] | None = option(
        None,
        "NAME=PATH,...: each a file, a folder, a known task (with --data_dir) or a data set on the "
        "Hub; instead of --train_file",
    )
    source_column: list[str] | None = option(
        None,
        "column of --train_file that names the source of a row (or its annotator, domain, ...); "
        "several columns name a cell together; a list in a json cell puts the row in several",
    )
    target_file: str | None = option(
        None,
        "the trusted examples: a file, a folder or a data set on the Hub; tested on --test_file, "
        "its own test split, or --test_fraction of it",
    )
    truth_column: str | None = option(
        None, "column of the sources with the true labels, for --controls oracle; seen by it alone"
    )
    family: str = option(
        "nlu",
        "the kind of task: texts classified, words tagged or text written",
        choices=FAMILIES,
    )
    route: Literal["features", "online"] = option(
        "features",
        "features searches the weights exactly on frozen features, then fine-tunes with them; "
        "online moves them along the fine-tuning by --hypergradient",
    )
    form: str | None = option(
        None,
        "what a weight can be: 0 for a source of which more would raise the loss on the target, "
        "the others alike (helpful, by one hypergradient); or searched: a share of the mixture "
        "over that of the sizes (softmax), the same with a --floor, or any number from 0 "
        "(non_negative); default: helpful, with --route online softmax",
        choices=FORMS,
    )
    floor: float = option(0.1, "least weight of a source with --form floor")
    controls: list[str] | None = option(
        None,
        f"what to compare with, on frozen features: {', '.join(CONTROLS)}; or all",
    )
    explain: bool = option(
        False, "show for each source the examples that pull its weight up and down"
    )
    num_explained: int = option(3, "examples each way that --explain shows of a source")
    weight_learning_rate: float | None = option(
        None, "learning rate of Adam on the weights; default: 0.5 for features, 0.05 for online"
    )
    max_weight_steps: int = option(
        15, "most upper steps of the search on features; how many is chosen by cross-validation"
    )
    weight_folds: int = option(5, "folds of the target: for the number of steps, and intervals")
    weight_seeds: int = option(1, "how often the target is divided into folds")
    ridge: float = option(1e-2, "ridge of the head on frozen features")
    num_axes: int = option(128, "principal axes of the frozen features that are kept")
    features_per_source: int = option(
        1000, "most examples of a source that the search on features sees"
    )
    target_steps: int | None = option(
        None, "updates on the target at the end; default: three epochs of it; 0: none"
    )
    target_learning_rate: float | None = option(
        None, "learning rate of the updates on the target; default: --learning_rate"
    )
    fine_tune: bool = option(True, "fine-tune with the weights; without, learn the weights alone")

    def __post_init__(self) -> None:
        for name in ("source_column", "controls"):
            object.__setattr__(self, name, separated(getattr(self, name)))
        object.__setattr__(self, "sources", whole_paths(separated(self.sources)))
        if self.controls == ["all"]:
            able = [c for c in CONTROLS if c != "oracle" or self.truth_column is not None]
            object.__setattr__(self, "controls", able)
        if self.form is None:
            object.__setattr__(self, "form", HELPFUL if self.route == "features" else "softmax")
        for choice, known in (("family", FAMILIES), ("route", ROUTES), ("form", FORMS)):
            value = getattr(self, choice)
            require(value in known, choice, value, f"must be one of {', '.join(known)}")
        self._check_sources()
        self._check_numbers()
        self._check_used()
        self._check_controls()

    def _check_sources(self) -> None:
        names = []
        for given in self.sources or ():
            name, equals, path = given.partition("=")
            right = bool(equals and path and NAME.fullmatch(name))
            require(right, "sources", given, "must be NAME=PATH with a name of letters and digits")
            names.append(name)
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "sources", twice, "must have a name each, none twice")
        alone = self.sources is None or self.source_column is None
        remedy = "goes with --train_file, not with --sources"
        require(alone, "source_column", self.source_column, remedy)

    def _check_numbers(self) -> None:
        require(0 <= self.floor < 1, "floor", self.floor, "must be at least 0 and less than 1")
        for name in ("weight_learning_rate", "target_learning_rate", "ridge"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be greater than 0")
        names = ["max_weight_steps", "weight_seeds", "num_axes", "num_explained"]
        require_all(self, names, 1, "must be at least 1")
        require_all(self, ("weight_folds", "features_per_source"), 2, "must be at least 2")
        require_all(self, ("target_steps",), 0, "must be at least 0; 0 leaves the target out")

    def _check_used(self) -> None:
        searched = self.form != HELPFUL
        remedy = "is found on frozen features; with --route online choose another form"
        require(searched or self.route == "features", "form", self.form, remedy)
        if self.form != "floor":
            require_untouched(self, ("floor",), f"goes with --form floor, not with {self.form}")
        if self.route == "online":
            remedy = "is of frozen features; goes with --route features"
            require_untouched(self, ON_FEATURES, remedy)
        elif not searched:
            remedy = "is of a search; with --form helpful there is none, choose --form softmax"
            names = ("weight_learning_rate", *(() if self.controls else ("max_weight_steps",)))
            require_untouched(self, names, remedy)
        if not self.explain:
            require_untouched(self, ("num_explained",), "goes with --explain")
        if not self.fine_tune:
            remedy = "is of the fine-tuning, which --fine_tune false leaves out"
            require_untouched(self, ("target_steps", "target_learning_rate"), remedy)

    @property
    def most_fits(self) -> int:
        """The most heads that a search on features fits, its folds included."""
        return (self.weight_folds * self.weight_seeds + 1) * (self.max_weight_steps + 1)

    def _check_controls(self) -> None:
        chosen = self.controls or []
        unknown = [c for c in chosen if c not in CONTROLS]
        require(not unknown, "controls", unknown, f"must be among {', '.join(CONTROLS)}, or all")
        known = "oracle" not in chosen or self.truth_column is not None
        require(known, "controls", "oracle", "needs --truth_column, the true labels")
        if self.family == "nlg":
            remedy = "is made of frozen features, and text that is written has no head on them"
        else:
            remedy = "is made of frozen features; needs --route features"
        if self.route == "online" or self.family == "nlg":
            require(not chosen, "controls", ",".join(chosen), remedy)
            require(not self.explain, "explain", True, remedy)
            remedy = "--route online learns the weights along the fine-tuning; leave it out"
            require(self.fine_tune or self.route != "online", "fine_tune", False, remedy)
        headless = self.family == "nlg" and self.route == "features"
        remedy = "text that is written has no head to fit on frozen features; use online"
        require(not headless, "route", self.route, remedy)
