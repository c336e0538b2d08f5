"""The base model and its tokenizer, where they are loaded from and to."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from applications.carried import minilm_folder
from applications.errors import UsageError
from applications.options.arguments import ModelOptions

CARRIED_MODEL = "minilm"
NOTHING: Mapping[str, Any] = {}


def location(options: ModelOptions) -> str:
    """The Hub name or folder to load from."""
    name = options.model_name_or_path
    return str(minilm_folder()) if name == CARRIED_MODEL else name


def device(options: ModelOptions) -> torch.device:
    """The device of the run."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(options.device)
    except RuntimeError as error:
        raise UsageError(
            f"argument --device: {options.device!r} is no device; use auto, cpu or cuda"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"argument --device: {options.device!r} needs CUDA, which this PyTorch does not see; "
            f"use --device cpu"
        )
    return chosen


def precision(options: ModelOptions) -> torch.dtype | None:
    """The dtype of autocast, None for none; parameters are float32 in either case."""
    return torch.bfloat16 if options.precision == "bf16" else None


def load_pretrained(
    auto_model: Any,
    options: ModelOptions,
    *,
    tokenizer_options: Mapping[str, Any] = NOTHING,
    **settings: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The pre-trained model in float32, with the head of ``auto_model``, and its tokenizer.

    Args:
        auto_model: the class of transformers that loads it.
        options: which model.
        tokenizer_options: for the tokenizer.
        settings: for the model: what its head needs.

    Raises:
        UsageError: the model is neither a folder nor reachable on the Hub.
    """
    place = location(options)
    if options.attn_implementation is not None:
        settings["attn_implementation"] = options.attn_implementation
    revision = options.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, **tokenizer_options)
        model = auto_model.from_pretrained(
            place, revision=revision, dtype=torch.float32, **settings
        )
    except OSError as error:
        raise UsageError(
            f"argument --model_name_or_path: {place!r} can be read neither as a folder nor from "
            f"the Hugging Face Hub ({type(error).__name__}); without a network give a folder with "
            f"config.json, model.safetensors and the tokenizer's files, or leave the argument out"
        ) from error
    return model, tokenizer
