"""The base model, its tokenizer, and the adapter of each method."""

from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from adapters import BiDoraConfig, BiLoraConfig
from applications.common.arguments import AdapterOptions, ModelOptions
from applications.common.carried import minilm_folder
from applications.common.errors import UsageError
from applications.common.examples import TaskData

CARRIED_MODEL = "minilm"


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


def load_base(
    options: ModelOptions, task: TaskData
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The pre-trained model with a new head for the task, and its tokenizer.

    Raises:
        UsageError: the model is neither a folder nor reachable on the Hub.
    """
    place = location(options)
    extra: dict[str, Any] = {}
    if options.attn_implementation is not None:
        extra["attn_implementation"] = options.attn_implementation
    if task.kind == "classification":
        extra["id2label"] = dict(enumerate(task.label_names))
        extra["label2id"] = {name: number for number, name in enumerate(task.label_names)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=options.revision)
        model = AutoModelForSequenceClassification.from_pretrained(
            place,
            revision=options.revision,
            dtype=torch.float32,
            num_labels=task.num_labels,
            problem_type=(
                "regression" if task.kind == "regression" else "single_label_classification"
            ),
            # A checkpoint with a head of another size gets a new one, as one without a head does.
            ignore_mismatched_sizes=True,
            **extra,
        )
    except OSError as error:
        raise UsageError(
            f"argument --model_name_or_path: {place!r} can be read neither as a folder nor from "
            f"the Hugging Face Hub ({type(error).__name__}); without a network give a folder with "
            f"config.json, model.safetensors and the tokenizer's files, or leave the argument out"
        ) from error
    return model, tokenizer


def adapter_config(options: AdapterOptions, method: str) -> PeftConfig:
    """The PEFT configuration of a method.

    Raises:
        UsageError: the adapter refuses a value.
    """
    common: dict[str, Any] = {
        "task_type": TaskType.SEQ_CLS,
        "r": options.lora_r,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": options.lora_target_modules,
    }
    if options.lora_target_modules == ["all-linear"]:
        common["target_modules"] = "all-linear"
    if method == "bilora" and options.lora_r == 1 and options.singular_values == "softmax":
        raise UsageError(
            "argument --lora_r: one softmax value is always 1, got 1; use a rank of at least 2, "
            "or --singular_values real"
        )
    try:
        if method == "bilora":
            return BiLoraConfig(
                values=options.singular_values, scale_by_rank=options.scale_by_rank, **common
            )
        if method == "bidora":
            return BiDoraConfig(**common)
        return LoraConfig(use_dora=method == "dora", **common)
    except ValueError as error:
        raise UsageError(f"method {method}: {error}") from error


def adapted_model(
    model_options: ModelOptions,
    adapter_options: AdapterOptions,
    task: TaskData,
    *,
    method: str,
    seed: int,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base model with the method's adapter, and the tokenizer.

    The seed is set first: the new head and the adapter's factors are drawn from it.
    """
    set_seed(seed)
    config = adapter_config(adapter_options, method)
    base, tokenizer = load_base(model_options, task)
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        modules = adapter_options.lora_target_modules
        raise UsageError(f"argument --lora_target_modules: {error} (got {modules})") from error
    assert isinstance(model, PeftModel)
    return model.to(device(model_options)), tokenizer
