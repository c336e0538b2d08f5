"""How good generated texts are against their references: corpus scores, and nothing downloaded.

METEOR (nltk's needs WordNet, the original Java) and CIDEr (its one package has not been maintained
since 2020 and carries 100 MB of Java) are left out.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from statistics import fmean

from applications.errors import UsageError

Words = tuple[str, ...]
NIST_ORDER = 5


def check_packages() -> None:
    """Raise a UsageError unless the packages that texts are scored with are installed."""
    missing = [name for name in ("sacrebleu", "rouge_score") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the package {missing[0]} is not installed: generated text is scored with it; install "
            "it with  pip install sacrebleu rouge-score"
        )


def text_scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float | None]:
    """BLEU, NIST, ROUGE-L and chrF of a corpus, each text against all of its references.

    ``bleu`` (0 to 100) is sacrebleu's, of words as mteval-v13a divides them, case ignored, as in
    the script of the E2E challenge; ``nist`` as in `nist`, of the same words; ``rouge_l`` (0 to
    100) the mean over the texts of the F1 of rouge-score with the reference where it is largest;
    ``chrf`` (0 to 100) sacrebleu's, with case. A score of no text is None.

    Args:
        hypotheses: one text an input; may be empty.
        references: at least one text an input; inputs may have different numbers of them.

    Raises:
        ValueError: the lengths differ, or an input has no reference.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"got {len(hypotheses)} hypotheses and {len(references)} inputs")
    without = [number for number, texts in enumerate(references) if not texts]
    if without:
        raise ValueError(f"input {without[0]} has no reference: leave it out of the evaluation")
    if not hypotheses:
        return dict.fromkeys(("bleu", "nist", "rouge_l", "chrf"))
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # sacrebleu wants the first references of all inputs, then the second ones ...; None is a gap.
    streams = [list(stream) for stream in zip_longest(*references)]
    rouge = RougeScorer(["rougeL"])
    return {
        "bleu": BLEU(lowercase=True, force=True).corpus_score(hypotheses, streams).score,
        "nist": nist(
            [words(text) for text in hypotheses],
            [[words(text) for text in texts] for texts in references],
        ),
        "rouge_l": 100
        * fmean(
            float(rouge.score_multi(list(texts), text)["rougeL"].fmeasure)
            for text, texts in zip(hypotheses, references, strict=True)
        ),
        "chrf": CHRF().corpus_score(hypotheses, streams).score,
    }


def words(text: str) -> Words:
    """The words of a text as mteval-v13a divides them, in lower case."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    divide: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]
    return tuple(divide(text.lower()).split())


def nist(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """The NIST score of a corpus.

    sum_{n=1}^5 [sum of info(w) over the matched n-grams w] / [number of n-grams in the
    hypotheses], times exp(-beta log^2 min(1, L / R)), where
    info(w_1 ... w_n) = log2(count(w_1 ... w_{n-1}) / count(w_1 ... w_n)) with counts over all
    references (the empty n-gram counts every word), L is the number of words of the hypotheses,
    R that of the references, averaged for each input, and beta makes the factor 1/2 at
    L / R = 2/3. An n-gram matches as often as it occurs in the reference with most of it, as in
    mteval-v13a; nltk takes one reference a hypothesis instead, which scores lower.

    Reference: Doddington (2002), equations 2 and 3.
    """
    counts: Counter[Words] = Counter()
    for texts in references:
        for text in texts:
            counts[()] += len(text)
            counts.update(ngrams(text))
    gained = [0.0] * NIST_ORDER
    possible = [0] * NIST_ORDER
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        most: Counter[Words] = Counter()
        for text in texts:
            most |= ngrams(text)
        found = ngrams(hypothesis)
        for ngram, count in found.items():
            possible[len(ngram) - 1] += count
        for ngram, count in (found & most).items():
            gained[len(ngram) - 1] += count * math.log2(counts[ngram[:-1]] / counts[ngram])
    precision = sum(g / p for g, p in zip(gained, possible, strict=True) if p)
    length = sum(map(len, hypotheses))
    expected = sum(fmean(map(len, texts)) for texts in references)
    if length == 0 or expected == 0:
        return 0.0
    beta = math.log(2) / math.log(1.5) ** 2
    return precision * math.exp(-beta * math.log(min(1.0, length / expected)) ** 2)


def ngrams(text: Words) -> Counter[Words]:
    """How often each sequence of 1 to 5 words occurs in a text."""
    return Counter(
        text[start : start + order]
        for order in range(1, NIST_ORDER + 1)
        for start in range(len(text) - order + 1)
    )
