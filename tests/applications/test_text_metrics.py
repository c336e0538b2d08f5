"""Scores of generated texts against the formulas, written out anew, and against nltk."""

import math
import random
from collections import Counter

import pytest
from nltk.translate.nist_score import corpus_nist

from applications.families.text_metrics import nist, text_scores, words

SAMPLES = (
    (["the cat sat on the mat"], [["the cat sat on a mat", "a cat was on the mat", "cats sit"]]),
    (
        ["the pub is cheap", "the the the the the", "a cheap family pub near the river"],
        [
            ["the pub is cheap and near the river"],
            ["the pub", "the the cafe"],
            ["a cheap pub near the river", "near the river is a family pub", "cheap a pub"],
        ],
    ),
)


def grams(text: list[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + order]) for i in range(len(text) - order + 1)]


def bleu(hypotheses: list[str], references: list[list[str]]) -> float:
    """Papineni et al. (2002) for texts whose words are divided by blanks."""
    logs = []
    for order in range(1, 5):
        matched = total = 0
        for hypothesis, texts in zip(hypotheses, references, strict=True):
            mine = grams(hypothesis.split(), order)
            total += len(mine)
            for gram in set(mine):
                ceiling = max(grams(text.split(), order).count(gram) for text in texts)
                matched += min(mine.count(gram), ceiling)
        logs.append(math.log(matched / total))
    length = sum(len(text.split()) for text in hypotheses)
    closest = 0
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        mine = len(hypothesis.split())
        closest += min((abs(len(t.split()) - mine), len(t.split())) for t in texts)[1]
    return 100 * math.exp(min(0.0, 1 - closest / length) + sum(logs) / 4)


def longest_common(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def rouge_l(hypotheses: list[str], references: list[list[str]]) -> float:
    """Lin (2004): F1 of the longest common subsequence, the best reference, the mean."""
    found = []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        h = hypothesis.split()
        scores = []
        for text in texts:
            r = text.split()
            scores.append(2 * longest_common(h, r) / (len(h) + len(r)))
        found.append(max(scores))
    return 100 * sum(found) / len(found)


@pytest.mark.parametrize("hypotheses, references", SAMPLES)
def test_bleu_is_the_published_formula_with_unequal_numbers_of_references(
    hypotheses: list[str], references: list[list[str]]
) -> None:
    expected = bleu(hypotheses, references)
    assert text_scores(hypotheses, references)["bleu"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("hypotheses, references", SAMPLES)
def test_rouge_l_is_the_published_formula(
    hypotheses: list[str], references: list[list[str]]
) -> None:
    expected = rouge_l(hypotheses, references)
    assert text_scores(hypotheses, references)["rouge_l"] == pytest.approx(expected, rel=1e-12)


def test_every_reference_counts_for_its_own_input_alone() -> None:
    hypotheses = ["the pub is cheap and good", "near the river is a cafe"]
    swapped = text_scores(hypotheses, [[hypotheses[1]], ["x y z", hypotheses[0]]])
    right = text_scores(hypotheses, [[hypotheses[0]], ["x y z", hypotheses[1]]])
    assert right["bleu"] == pytest.approx(100)
    assert right["rouge_l"] == pytest.approx(100)
    assert swapped["bleu"] < 20


def test_nist_is_the_number_computed_by_hand() -> None:
    # References "a b a", "a c" (one input) and "b": 6 words, a 3 times, b 2, c 1; ab, ba, ac once.
    # Hypotheses "a c a" and "b d": matched unigrams a, a, c, b (a twice in the first reference, c
    # from the second), of 5; matched bigrams ac of 3 (ca, bd are in no reference); trigram of 1.
    unigrams = (2 * math.log2(6 / 3) + math.log2(6 / 1) + math.log2(6 / 2)) / 5
    bigrams = math.log2(3 / 1) / 3
    # 5 words where (3 + 2) / 2 + 1 = 3.5 are expected: no penalty.
    found = nist([("a", "c", "a"), ("b", "d")], [[("a", "b", "a"), ("a", "c")], [("b",)]])
    assert found == pytest.approx(unigrams + bigrams, rel=1e-12)


def test_nist_is_halved_at_two_thirds_of_the_length() -> None:
    # Every word once: info of a unigram log2(6), of longer n-grams log2(1) = 0.
    assert nist([tuple("abcd")], [[tuple("abcdef")]]) == pytest.approx(math.log2(6) / 2, rel=1e-12)


def test_nist_agrees_with_nltk_where_every_input_has_one_reference() -> None:
    draw = random.Random(0)
    texts = [[draw.choice("abcde") for _ in range(draw.randint(5, 12))] for _ in range(40)]
    hypotheses, references = texts[:20], texts[20:]
    expected = corpus_nist([[text] for text in references], hypotheses)
    found = nist([tuple(h) for h in hypotheses], [[tuple(r)] for r in references])
    assert found == pytest.approx(expected, rel=1e-12)


def test_words_are_divided_as_by_mteval_in_lower_case() -> None:
    found = words("It's £20-25, Café Rouge.")
    assert found == ("it's", "£20", "-", "25", ",", "café", "rouge", ".")


def test_empty_and_short_hypotheses_have_finite_scores() -> None:
    nothing = text_scores(["", ""], [["a b"], ["c"]])
    assert nothing == {"bleu": 0.0, "nist": 0.0, "rouge_l": 0.0, "chrf": 0.0}
    short = text_scores(["a", ""], [["a b"], ["c"]])
    assert all(math.isfinite(score) for score in short.values() if score is not None)


def test_no_text_has_no_score() -> None:
    assert set(text_scores([], []).values()) == {None}


def test_an_input_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="input 1 has no reference"):
        text_scores(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="2 hypotheses and 1 inputs"):
        text_scores(["a", "b"], [["a"]])


def test_chrf_is_the_published_formula_for_one_character_n_grams_deep() -> None:
    # chrF2 with character n-grams up to 6, blanks left out: texts of 2 characters have n = 1, 2.
    hypothesis, reference = "ab", "ac"
    scores = []
    for order in (1, 2):
        h, r = (
            Counter(t[i : i + order] for i in range(3 - order)) for t in (hypothesis, reference)
        )
        matched = (h & r).total()
        scores.append((matched / h.total(), matched / r.total()))
    precision, recall = (sum(column) / 2 for column in zip(*scores, strict=True))
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert text_scores([hypothesis], [[reference]])["chrf"] == pytest.approx(expected, rel=1e-9)
