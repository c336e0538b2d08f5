"""Random language models of a few thousand parameters, and meaning representations to train on."""

import random
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

NAMES = ("Aromi", "Zizzi", "Cocum", "Wildwood", "Strada", "Giraffe", "Fitzbillies", "Vaults")
FOODS = ("Indian", "French", "English", "Italian")
AREAS = ("riverside", "centre")
GRAMMAR = ("name", "food", "area", "is", "serves", "in", "the", "a", "pub", "and", ":", "|", ".")
WORDS = (*NAMES, *FOODS, *AREAS, *GRAMMAR)
ARCHITECTURES = ("gpt2", "llama")
POSITIONS = 64


def write_model(folder: Path, architecture: str) -> None:
    """A GPT-2, whose tokenizer only has an end, or a Llama, whose tokenizer sets a beginning."""
    tokenizer(architecture).save_pretrained(str(folder))
    set_seed(0)
    vocabulary = len(WORDS) + 4
    if architecture == "gpt2":
        gpt2 = GPT2Config(
            vocab_size=vocabulary,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=POSITIONS,
            tie_word_embeddings=False,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=2,
            eos_token_id=2,
        )
        GPT2LMHeadModel(gpt2).save_pretrained(str(folder))
        return
    llama = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(llama).save_pretrained(str(folder))


def tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """A word a token; neither has one to pad with."""
    vocabulary = ["[UNK]", "<s>", "</s>", "||", *WORDS]
    backend = Tokenizer(WordLevel({w: n for n, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    if architecture == "gpt2":
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="[UNK]", eos_token="</s>", bos_token="</s>"
        )
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="</s>", bos_token="<s>"
    )


def write_data(folder: Path) -> None:
    """Restaurants in train.csv (24 inputs), validation.csv (6) and test.csv (8).

    Inputs have one to three references, and different lengths.
    """
    draw = random.Random(0)
    made: set[str] = set()
    for split, count in {"train": 24, "validation": 6, "test": 8}.items():
        rows = ["mr,ref"]
        while count:
            name, food, area = (draw.choice(values) for values in (NAMES, FOODS, AREAS))
            whole = draw.random() < 0.5
            meaning = f"name[{name}], food[{food}]" + (f", area[{area}]" if whole else "")
            if meaning in made:
                continue
            made.add(meaning)
            count -= 1
            place = f" in the {area}" if whole else ""
            texts = [
                f"{name} serves {food} food{place} .",
                f"the pub {name}{place} is {food} .",
                f"a {food} pub is {name} .",
            ]
            rows += [f'"{meaning}",{text}' for text in texts[: draw.randint(1, 3)]]
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
