"""Frozen features against the model on one row at a time, and projections against NumPy's SVD."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from applications.families.named import family_of
from applications.options.arguments import ModelOptions, Options, RunOptions
from applications.weighting.features import IGNORED, Projection, answers, frozen

TEXTS = ["cat", "the old red cat of the big dog", "a dog", "bread and cheese", "saw"]


def opened(command: str, tiny_model: str) -> tuple[Any, Any, Any, Options]:
    """Family, model, tokenizer and options; batches of two rows, of which one is padded."""
    run = RunOptions(per_device_eval_batch_size=2)
    options = Options(model=ModelOptions(model_name_or_path=tiny_model, device="cpu"), run=run)
    family = family_of(command)
    task = type("Task", (), {"kind": "classification", "num_labels": 3, "label_names": "abc"})()
    return family, *family.load_base(options.model, task), options


def hidden(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """The last hidden states of one row without padding ``(tokens, width)``."""
    model.eval()
    with torch.no_grad():
        return model.base_model(torch.tensor([row["input_ids"]])).last_hidden_state[0]


def test_a_text_is_the_mean_over_its_own_tokens_in_the_order_of_the_rows(tiny_model: str) -> None:
    family, model, tokenizer, options = opened("nlu", tiny_model)
    rows = family.encode(Dataset.from_dict({"text": TEXTS, "label": [0] * 5}), tokenizer, options)
    expected = torch.stack([hidden(model, row).mean(0) for row in rows])
    model.train()
    found, owners = frozen(model, rows, family.collator(tokenizer), options, words=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert owners.tolist() == [0, 1, 2, 3, 4]
    assert model.training


def test_a_word_is_the_hidden_state_of_its_labelled_token(tiny_model: str) -> None:
    family, model, tokenizer, options = opened("token_classification", tiny_model)
    words = [text.split() for text in TEXTS]
    data = Dataset.from_dict({"tokens": words, "tags": [[0] * len(each) for each in words]})
    rows = family.encode(data, tokenizer, options)
    expected, owner = [], []
    for number, row in enumerate(rows):
        marked = [at for at, label in enumerate(row["labels"]) if label != IGNORED]
        expected.append(hidden(model, row)[marked])
        owner += [number] * len(marked)
    found, owners = frozen(model, rows, family.collator(tokenizer), options, words=True)
    assert owners.tolist() == owner
    assert len(found) == sum(map(len, words))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [2, 9])
def test_a_projection_has_the_inner_products_of_the_largest_singular_vectors(kept: int) -> None:
    """Axes have no sign of their own; inner products of centred rows do not depend on it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 7
    x = features.double().numpy()
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    cut = (u * s)[:, :kept]
    scaled = cut / np.sqrt((cut**2).sum(1).mean())  # a mean square length of one
    projection = Projection.of(features, kept=kept)
    found = projection(features)
    assert found.shape == (20, min(kept, 4) + 1)
    assert (found[:, -1] == 1).all()
    np.testing.assert_allclose(found[:, :-1] @ found[:, :-1].T, scaled @ scaled.T, atol=1e-10)
    # Other rows are moved and scaled as those that the projection was made of.
    np.testing.assert_allclose(projection(features[3:5]), found[3:5], atol=1e-12)


def test_answers_are_one_hot_rows_or_decimals() -> None:
    assert answers([2, 0], 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert answers([0.5, 2.0], 1).tolist() == [[0.5], [2.0]]
