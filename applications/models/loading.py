"""The base model and its tokenizer, where they are loaded from and to."""

import json
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from applications.carried import minilm_folder
from applications.errors import UsageError
from applications.models.soundness import check_fit, check_folder, check_loaded, new_parts
from applications.options.arguments import ModelOptions

CARRIED_MODEL = "minilm"
UNREADABLE = (SafetensorError, pickle.UnpicklingError, json.JSONDecodeError)
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
    if chosen.type not in ("cpu", "cuda"):
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is None or accelerator.type != chosen.type:
            raise UsageError(
                f"argument --device: nothing can be trained on {options.device!r} here; use auto, "
                f"cpu or cuda"
            )
    if chosen.type == "cuda" and torch.cuda.is_available():
        count = torch.cuda.device_count()
        if chosen.index is not None and chosen.index >= count:
            raise UsageError(
                f"argument --device: {options.device!r} does not exist, there are {count} CUDA "
                f"devices, numbered from 0"
            )
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

    ``new_parts`` of the model names the modules that the checkpoint lacks.

    Args:
        auto_model: the class of transformers that loads it.
        options: which model.
        tokenizer_options: for the tokenizer.
        settings: for the model: what its head needs.

    No code that comes with a model is run: those that need their own are refused.

    Raises:
        UsageError: the model is neither a folder nor reachable on the Hub, is damaged, or does not
            fit its tokenizer.
    """
    place = location(options)
    check_folder(place)
    if options.attn_implementation is not None:
        settings["attn_implementation"] = options.attn_implementation
    common: dict[str, Any] = {"revision": options.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **common, **tokenizer_options)
        model, found = auto_model.from_pretrained(
            place, **common, dtype=torch.float32, output_loading_info=True, **settings
        )
    except (ValueError, KeyError, TypeError, RuntimeError, ImportError, *UNREADABLE) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"argument --model_name_or_path: the model or tokenizer in {place!r} cannot be loaded "
            f"({said}); take a whole copy, of a kind that transformers itself can load"
        ) from error
    except OSError as error:
        raise UsageError(
            f"argument --model_name_or_path: {place!r} can be read neither as a folder nor from "
            f"the Hugging Face Hub ({type(error).__name__}); without a network give a folder with "
            f"config.json, model.safetensors and the tokenizer's files, or leave the argument out"
        ) from error
    check_loaded(model, found, place)
    check_fit(tokenizer, model, place)
    model.new_parts = new_parts(model, found)
    return model, tokenizer
