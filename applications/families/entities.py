"""How predicted entities in tagged sentences are scored."""

from collections import Counter
from collections.abc import Iterable, Sequence

from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

from applications.data.tags import Sentences
from applications.families.details import ClassScores, Details, Mistake, worst


def entity_scores(
    truth: Sentences, predictions: Sentences, types: Iterable[str]
) -> dict[str, float | None]:
    """Precision, recall and F1 of whole entities, over all types and F1 of each (``f1_person``).

    An entity is right when first word, last word and type are. F1 = 2 TP / (2 TP + FP + FN), with
    the counts of all types added (micro average). Entities are read as `seqeval` does by default,
    and conlleval before it: an I- that continues nothing starts an entity, so every sequence of
    tags has a meaning. A ratio 0/0 is None: precision without predictions, recall without
    entities, F1 without either.

    Args:
        truth: the tags of each sentence.
        predictions: as many tags.
        types: whose F1 is wanted.
    """
    truth, predictions = [list(tags) for tags in truth], [list(tags) for tags in predictions]
    expected, found = (Counter(kind for kind, *_ in get_entities(s)) for s in (truth, predictions))
    # zero_division=0 keeps seqeval from warning; the ratios that it decides are replaced below.
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predictions, average="micro", zero_division=0
    )
    each = precision_recall_fscore_support(truth, predictions, average=None, zero_division=0)[2]
    by_type = dict(zip(sorted(expected | found), each, strict=True))
    scores: dict[str, float | None] = {
        "precision": float(precision) if found else None,
        "recall": float(recall) if expected else None,
        "f1": float(f1) if expected or found else None,
    }
    for kind in types:
        scores[f"f1_{kind}"] = float(by_type[kind]) if kind in by_type else None
    return scores


def of_entities(truth: Sentences, predictions: Sentences, sentences: Sentences) -> Details:
    """The details of tagged sentences: scores of each type of entity, and the sentences with most
    entities missed or wrongly found.

    Args:
        truth: the tags of each sentence.
        predictions: as many tags.
        sentences: their words.
    """
    truth, predictions = [list(tags) for tags in truth], [list(tags) for tags in predictions]
    expected, found = (Counter(kind for kind, *_ in get_entities(s)) for s in (truth, predictions))
    scores: dict[str, ClassScores] = {}
    if expected or found:
        each = precision_recall_fscore_support(truth, predictions, average=None, zero_division=0)
        for kind, precision, recall, f1, _ in zip(sorted(expected | found), *each, strict=True):
            scores[kind] = {
                "precision": float(precision) if found[kind] else None,
                "recall": float(recall) if expected[kind] else None,
                "f1": float(f1),
                "support": expected[kind],
            }
    mistakes = []
    for words, right, got in zip(sentences, truth, predictions, strict=True):
        apart = set(get_entities(right)) ^ set(get_entities(got))
        if apart:
            told = (" ".join(words), in_words(words, right), in_words(words, got))
            mistakes.append(Mistake(*told, weight=float(len(apart))))
    return Details(scores, (), worst(mistakes), len(mistakes))


def in_words(words: Sequence[str], tags: Sequence[str]) -> str:
    """The entities of a sentence in words."""
    found = [f"{' '.join(words[a : b + 1])} ({kind})" for kind, a, b in get_entities(list(tags))]
    return "; ".join(found) or "none"
