"""What a base model and its tokenizer must be before anything is trained on them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from applications.errors import UsageError

ARGUMENT = "argument --model_name_or_path"
TOKENIZER_FILES = re.compile(
    r"tokenizer\.(json|model)|vocab\..+|merges\.txt|tekken\.json|spm\..+|.*(spiece|sentencepiece|bpe)"
    r".*|.*\.tiktoken"
)
WITHOUT_FILES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Tokenizers that divide text into bytes or characters, and have no vocabulary."""
NEW_PARTS = ("pooler", "position_ids")
"""Parts of a base model that checkpoints may leave out, as its head."""
TOO_LONG = "argument --max_seq_length: must be at most {most} for this model"
SAMPLE = 500
"""Training texts of which the words are looked up."""
MOST_UNKNOWN = 0.5


def check_folder(place: str) -> None:
    """Raise a UsageError for a folder that holds no model with its tokenizer.

    Names on the Hub are not looked at.
    """
    folder = Path(place)
    if not folder.is_dir():
        if folder.is_file():
            raise UsageError(f"{ARGUMENT}: {place!r} is a file; give the folder that it lies in")
        return
    names = [file.name for file in folder.iterdir()]
    if "adapter_config.json" in names:
        raise UsageError(
            f"{ARGUMENT}: {place!r} holds an adapter, not a base model; give the model that its "
            f"adapter_config.json names as base_model_name_or_path"
        )
    if "config.json" not in names:
        raise UsageError(
            f"{ARGUMENT}: {place!r} holds no config.json; give a folder with config.json, "
            f"model.safetensors and the tokenizer's files"
        )
    if not any(TOKENIZER_FILES.fullmatch(name) for name in names):
        try:
            made = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            made = {}
        if not isinstance(made, dict) or made.get("tokenizer_class") not in WITHOUT_FILES:
            raise UsageError(
                f"{ARGUMENT}: {place!r} holds a model and no tokenizer (tokenizer.json, vocab.txt "
                f"...); put there the files of the tokenizer that the model was trained with"
            )


def check_loaded(model: PreTrainedModel, found: Mapping[str, Iterable[Any]], place: str) -> None:
    """Raise a UsageError where weights of the base model are missing, misshapen or not finite.

    A head is new, and may be missing or have another shape.

    Args:
        model: as it was loaded.
        found: the loading info of transformers.
        place: where it was loaded from.
    """
    base = f"{model.base_model_prefix}."
    wrong = {
        kind: sorted(
            name
            for name in (key[0] if isinstance(key, tuple) else key for key in found.get(kind, ()))
            if name.startswith(base) and not any(part in name for part in NEW_PARTS)
        )
        for kind in ("mismatched_keys", "missing_keys")
    }
    for kind, what in (("mismatched_keys", "of other shapes"), ("missing_keys", "missing")):
        names = wrong[kind]
        if names:
            raise UsageError(
                f"{ARGUMENT}: the weights in {place!r} do not fit its config.json, {len(names)} of "
                f"them are {what} ({names[0]}); give a folder in which they belong together"
            )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UsageError(
                f"{ARGUMENT}: the weights in {place!r} are not finite ({name}); take a whole copy"
            )


def new_parts(model: nn.Module, found: Mapping[str, Iterable[Any]]) -> list[str]:
    """The names of the modules whose weights are new, not those of a checkpoint: mostly a head.

    Of modules within one another the outermost that is new as a whole.

    Args:
        model: as it was loaded.
        found: the loading info of transformers.
    """
    absent = {
        key[0] if isinstance(key, tuple) else key
        for kind in ("mismatched_keys", "missing_keys")
        for key in found.get(kind, ())
    }
    new = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name in absent}
    whole = {
        name
        for name, module in model.named_modules()
        if name and (own := [key for key, _ in module.named_parameters(prefix=name)])
        if absent.issuperset(own)
    }
    return sorted(name for name in new | whole if name and name.rpartition(".")[0] not in whole)


def check_fit(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, place: str) -> None:
    """Raise a UsageError where the tokenizer has tokens that the model does not know."""
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if known is not None and len(tokenizer) > known:
        raise UsageError(
            f"{ARGUMENT}: the tokenizer in {place!r} has {len(tokenizer)} tokens, the model knows "
            f"{known}; give the tokenizer that the model was trained with"
        )


def positions(model: nn.Module) -> int | None:
    """The number of tokens that a model can read, None where nothing says it."""
    for name, module in model.named_modules():
        place = name.rpartition(".")[2]
        if place in ("position_embeddings", "wpe", "embed_positions") and isinstance(
            module, nn.Embedding
        ):
            # RoBERTa's and OPT's tables begin with places that no token has.
            start = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - int(getattr(module, "offset", start))
    said = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return said if isinstance(said, int) and said > 0 else None


def check_lengths(rows: Iterable[Sequence[int]], model: nn.Module, split: str, remedy: str) -> None:
    """Raise a UsageError for a row of more tokens than the model has positions."""
    most = positions(model)
    for row, tokens in enumerate(rows, start=1):
        if most is not None and len(tokens) > most:
            raise UsageError(
                f"{remedy.format(most=most)}: row {row} of the {split} split has {len(tokens)} "
                f"tokens, the model reads {most}"
            )


def check_known(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Raise a UsageError where the tokenizer does not know most of the words of some texts."""
    unknown = tokenizer.unk_token_id
    some = list(islice(texts, SAMPLE))
    if unknown is None or not some:
        return
    found = tokenizer(some, add_special_tokens=False)["input_ids"]
    total = sum(map(len, found))
    share = sum(tokens.count(unknown) for tokens in found) / max(total, 1)
    if share > MOST_UNKNOWN:
        raise UsageError(
            f"{ARGUMENT}: the tokenizer of {place!r} does not know {share:.0%} of the words of the "
            f"training texts (they become {tokenizer.unk_token}); take a model for their language, "
            f"or the tokenizer that belongs to this one"
        )
    if not total:
        raise UsageError(
            f"{ARGUMENT}: the tokenizer of {place!r} makes no token of the training texts; take "
            f"the tokenizer that belongs to the model"
        )
