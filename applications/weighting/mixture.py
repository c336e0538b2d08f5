"""Learned weights as other tools mix: each tool's fields, in each tool's meaning."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from applications.errors import UsageError
from applications.pages.writing import write_json, write_whole

BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""How ``datasets.load_dataset`` calls the reader of a file."""


@dataclass(frozen=True)
class Weighed:
    """One source with its weight: its file, folder or Hub name, examples, weight and interval."""

    name: str
    path: str
    size: int
    weight: float
    low: float | None
    high: float | None


def kept(sources: Sequence[Weighed]) -> list[Weighed]:
    """The sources that are not dropped.

    Raises:
        UsageError: every weight is zero.
    """
    found = [source for source in sources if source.weight > 0]
    if not found:
        raise UsageError("every source has the weight 0: no mixture is left; use --form softmax")
    return found


def probabilities(sources: Sequence[Weighed]) -> dict[str, float]:
    """The share of each source in the mixture, ``w_s n_s / sum_r w_r n_r``; 0 for a dropped one."""
    total = sum(source.weight * source.size for source in kept(sources))
    return {source.name: source.weight * source.size / total for source in sources}


def mixture(sources: Sequence[Weighed]) -> dict[str, Any]:
    """What mixture.json says.

    - ``probabilities``: for ``datasets.interleave_datasets(sets, probabilities)``, in the order of
      ``sources``; a weight of zero leaves the source out of both.
    - ``trl``: ``fraction`` is a source's share of the final mixture; TRL makes the mixture as large
      as it can be without a row taken twice.
    - ``axolotl``: ``weight`` is the share of a source's rows that is kept, ``w_s / max w``.
    - ``llama_factory``: ``interleave_probs`` are probabilities of drawing, as text; ``dataset``
      names the entries of ``dataset_info``, which it reads from the file of that name.
    """
    used = kept(sources)
    share = probabilities(sources)
    plain = plain_names([source.name for source in used])
    largest = max(source.weight for source in used)
    return {
        "weights": {
            source.name: {
                "path": source.path,
                "size": source.size,
                "weight": source.weight,
                "low": source.low,
                "high": source.high,
                "probability": share[source.name],
            }
            for source in sources
        },
        "sources": [source.name for source in used],
        "dropped": [source.name for source in sources if source.weight == 0],
        "probabilities": [share[source.name] for source in used],
        "trl": {
            "datasets": [
                {**location(source.path), "fraction": share[source.name]} for source in used
            ]
        },
        "axolotl": {
            "datasets": [
                {**axolotl_location(source.path), "weight": source.weight / largest}
                for source in used
            ]
        },
        "llama_factory": {
            "dataset": ",".join(plain),
            "mix_strategy": "interleave_over",
            "interleave_probs": ",".join(repr(share[source.name]) for source in used),
        },
        "dataset_info": {
            name: llama_factory_location(source.path)
            for name, source in zip(plain, used, strict=True)
        },
    }


def plain_names(names: Sequence[str]) -> list[str]:
    """The names as LLaMA-Factory takes them, which divides a list of them at commas and strips
    each; numbered where two become one.
    """
    found: list[str] = []
    for name in names:
        plain = name.replace(",", "_").strip()
        while plain in found:
            plain += f"_{len(found)}"
        found.append(plain)
    return found


def llama_factory_location(path: str) -> dict[str, Any]:
    """The entry of a source in LLaMA-Factory's dataset_info.json; columns are yours to add."""
    place = Path(path)
    if place.suffix in BUILDERS or place.is_dir():
        return {"file_name": str(place.resolve())}
    return {"hf_hub_url": path}


def location(path: str) -> dict[str, Any]:
    """Where ``load_dataset`` finds a source: a file, a folder, or a name on the Hub."""
    place = Path(path)
    if place.suffix in BUILDERS:
        return {"path": BUILDERS[place.suffix], "data_files": path, "split": "train"}
    return {"path": path, "split": "train"}


def axolotl_location(path: str) -> dict[str, Any]:
    """The same for axolotl, which takes a file as the path and its kind beside it."""
    kind = BUILDERS.get(Path(path).suffix)
    return {"path": path} if kind is None else {"path": path, "ds_type": kind}


def write_mixture(folder: Path, sources: Sequence[Weighed]) -> dict[str, Any]:
    """Write mixture.json and, for each tool, its fields as a YAML file in ``mixture/``."""
    found = mixture(sources)
    write_json(folder / "mixture.json", found)

    def write(draft: Path) -> None:
        draft.mkdir()
        for tool in ("trl", "axolotl", "llama_factory"):
            text = yaml.safe_dump(found[tool], sort_keys=False, allow_unicode=True)
            (draft / f"{tool}.yaml").write_text(text, encoding="utf-8")
        info = json.dumps(found["dataset_info"], indent=2, ensure_ascii=False)
        (draft / "dataset_info.json").write_text(info + "\n", encoding="utf-8")

    write_whole(folder / "mixture", write)
    return found
