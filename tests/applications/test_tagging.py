import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaTokenizer

from applications.data.conll import read_conll
from applications.data.examples import TaskData
from applications.data.sentences import tagging_data
from applications.data.tags import in_order, scheme
from applications.errors import UsageError
from applications.families.entities import entity_scores
from applications.families.family import Setting
from applications.families.metrics import Evaluation
from applications.families.tagging import (
    IGNORED,
    TokenClassification,
    byte_level,
    tagging_evaluation,
)
from applications.options.arguments import DataOptions, ModelOptions, Options

FAMILY = TokenClassification()
NAMES = ("O", "B-x", "I-x", "B-y", "I-y")


# Files


def conll(tmp_path: Path, text: str, name: str = "train.conll") -> Path:
    file = tmp_path / name
    file.write_bytes(text.encode())
    return file


def test_a_file_is_read_into_sentences_of_words_and_tags(tmp_path: Path) -> None:
    found = read_conll(conll(tmp_path, "Ann\tB-person\nsleeps\tO\n\nHere\tO\n"))
    assert found["tokens"][:] == [["Ann", "sleeps"], ["Here"]]
    assert found["tags"][:] == [["B-person", "O"], ["O"]]


@pytest.mark.parametrize(
    "text",
    [
        "Ann\tB-person\nsleeps\tO\n\nHere\tO",
        "Ann\tB-person\r\nsleeps\tO\r\n\r\nHere\tO\r\n",
        "\ufeffAnn\tB-person\nsleeps\tO\n\nHere\tO\n",
        "\n\nAnn\tB-person\nsleeps\tO\n\t\n\n \nHere\tO\n\n\n",
        "Ann B-person\nsleeps O\n\nHere O\n",
        "Ann  B-person \nsleeps O\n\nHere O\n",
        "-DOCSTART-\t-X-\tO\n\nAnn\tN\tB-person\nsleeps\tV\tO\n\n-DOCSTART- -X- O\n\nHere x O\n",
    ],
    ids=["no-last-feed", "crlf", "mark", "blank-tab", "spaces", "many-spaces", "docstart-columns"],
)
def test_other_spellings_of_a_file_say_the_same(tmp_path: Path, text: str) -> None:
    found = read_conll(conll(tmp_path, text))
    assert found["tokens"][:] == [["Ann", "sleeps"], ["Here"]]
    assert found["tags"][:] == [["B-person", "O"], ["O"]]


def test_a_word_may_hold_spaces_or_unicode_separators_where_tabs_divide(tmp_path: Path) -> None:
    words = ["New York", "\x85", "\u2028", "#", ""]
    found = read_conll(conll(tmp_path, "".join(f"{word}\tO\n" for word in words)))
    assert found["tokens"][:] == [words]


def test_a_line_with_one_column_is_an_error_with_its_number(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 2: a word and its tag are expected, got 'sleeps'"):
        read_conll(conll(tmp_path, "Ann\tO\nsleeps\n"))


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "train.conll"
    file.write_bytes("Zoë\tO\n".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_conll(file)


# Tags


def test_tags_are_in_order_of_their_type_and_then_of_their_prefix() -> None:
    tags = ["I-per", "B-per", "I-loc", "S-loc", "E-loc", "B-loc"]
    assert in_order(tags) == ("O", "B-loc", "I-loc", "E-loc", "S-loc", "B-per", "I-per")


@pytest.mark.parametrize("tag", ["NN", "U-person", "person-B", "B-", "0", "", "B_person"])
def test_a_tag_of_no_known_scheme_is_an_error_that_names_the_schemes(tag: str) -> None:
    with pytest.raises(UsageError, match=f"tag '{tag}' is not understood.*IOB1, BIO and BIOES"):
        in_order(["O", tag])


@pytest.mark.parametrize(
    "name,sentences",
    [
        ("BIO", [["B-x", "I-x", "B-x", "O", "B-y"]]),
        ("BIO", [["O"]]),
        ("BIO", [["B", "I", "O"]]),
        ("IOB1", [["I-x", "I-x", "B-x", "O", "I-y"]]),
        ("IOB1", [["I-x", "I-y"]]),
        ("BIOES", [["B-x", "E-x", "S-y"]]),
        ("mixed", [["B-x", "O"], ["I-x"]]),
    ],
)
def test_the_scheme_of_tags_is_recognised(name: str, sentences: list[list[str]]) -> None:
    assert scheme(sentences) == name


# Scores


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """By brute force: spans that nothing divides and nothing extends."""
    parts = [(tag[0], tag[2:] or "_") for tag in tags]

    def joined(first: int) -> bool:
        """Whether words ``first`` and ``first + 1`` are in one entity."""
        if not 0 <= first < len(parts) - 1:
            return False
        (left, kind), (right, other) = parts[first], parts[first + 1]
        return kind == other and left in "BI" and right in "IE"

    found = set()
    for start in range(len(tags)):
        for end in range(start, len(tags)):
            whole = all(joined(k) for k in range(start, end))
            alone = not joined(start - 1) and not joined(end)
            if tags[start] != "O" and whole and alone:
                found.add((parts[start][1], start, end))
    return found


def brute_force(
    truth: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> dict[str, float | None]:
    def scores(kinds: set[str]) -> tuple[float | None, float | None, float | None]:
        right = wrong = missed = 0
        for expected, found in zip(map(entities, truth), map(entities, predictions), strict=True):
            expected = {entity for entity in expected if entity[0] in kinds}
            found = {entity for entity in found if entity[0] in kinds}
            right += len(expected & found)
            wrong += len(found - expected)
            missed += len(expected - found)

        def ratio(above: float, below: float) -> float | None:
            return above / below if below else None

        f1 = ratio(2 * right, 2 * right + wrong + missed)
        return ratio(right, right + wrong), ratio(right, right + missed), f1

    precision, recall, f1 = scores({"x", "y", "_"})
    by_type = {f"f1_{kind}": scores({kind})[2] for kind in ("x", "y", "_")}
    return {"precision": precision, "recall": recall, "f1": f1, **by_type}


def approximately(scores: dict[str, float | None]) -> dict[str, Any]:
    return {k: None if v is None else pytest.approx(v, rel=1e-12) for k, v in scores.items()}


TAGS = ["O", "O", *(f"{p}-{kind}" for p in "BIES" for kind in "xy"), "B", "I"]
PAIRS = st.lists(
    st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)


@given(PAIRS)
@settings(max_examples=300, deadline=None)
def test_scores_are_those_of_a_brute_force_search(pairs: list[list[tuple[str, str]]]) -> None:
    truth = [[first for first, _ in sentence] for sentence in pairs]
    predictions = [[second for _, second in sentence] for sentence in pairs]
    found = entity_scores(truth, predictions, ("x", "y", "_"))
    assert found == approximately(brute_force(truth, predictions))


def test_the_average_is_over_entities_and_not_over_types_or_sentences() -> None:
    truth = [["B-x", "O", "B-x"], ["B-x", "B-y"]]
    predictions = [["B-x", "O", "B-x"], ["B-x", "B-x"]]
    found = entity_scores(truth, predictions, ("x", "y"))
    # x: three right, one too many; y: none of one. Macro F1 would be 3/7.
    expected = {"precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "f1_x": 6 / 7, "f1_y": 0.0}
    assert found == approximately({**expected})


def test_ratios_without_entities_are_none_and_nothing_warns() -> None:
    nothing = [["O", "O"]]
    assert set(entity_scores(nothing, nothing, ("x",)).values()) == {None}
    missed = entity_scores([["B-x", "O"]], nothing, ("x", "y"))
    expected = {"precision": None, "recall": 0.0, "f1": 0.0, "f1_x": 0.0, "f1_y": None}
    assert missed == expected


def test_loss_accuracy_and_calibration_are_those_of_words() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]], dtype=torch.float64)
    names = ("O", "B-x", "I-x")
    # The second sentence has a word without an output, between the other two.
    found = tagging_evaluation([logits[:1], logits[1:]], [[0], [0, 2]], [[1], [1, 0, 2]], names)
    probabilities = torch.stack([row.exp() / row.exp().sum() for row in logits])
    labels = [1, 1, 2]
    nll = [-probabilities[k, label].log() for k, label in enumerate(labels)]
    assert found.loss == pytest.approx(float(sum(nll)) / 3, rel=1e-12)
    assert found.metrics["accuracy"] == 2 / 4
    assert found.metrics["coverage"] == 3 / 4
    # Predicted: O | B O I, where an I behind an O is an entity of its own; true: B | B O I.
    expected = {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "f1_x": 0.8}
    assert {name: found.metrics[name] for name in expected} == approximately({**expected})
    squares = [
        sum((float(probabilities[k, c]) - (c == label)) ** 2 for c in range(3))
        for k, label in enumerate(labels)
    ]
    assert found.metrics["brier"] == pytest.approx(sum(squares) / 3, rel=1e-12)
    # Confidences 0.79, 0.58 and 0.91 fall into three bins; the first prediction is wrong.
    confidence = probabilities.max(-1).values.tolist()
    gaps = [abs(c - right) for c, right in zip(confidence, (0, 1, 1), strict=True)]
    # torchmetrics bins in float32.
    assert found.metrics["ece"] == pytest.approx(sum(gaps) / 3, rel=1e-5)
    assert found.reliability is not None
    assert sum(part["count"] for part in found.reliability) == 3


# Pieces


def cut_at(length: int) -> Options:
    return Options(model=ModelOptions(device="cpu"), data=DataOptions(max_seq_length=length))


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ann", "##a", "bo", "##b", "c", "##d", "!"]
CORPUS = ["Ann saw Bob in Paris !", "Bob saw the Eiffel tower in Paris", "unhappiness"]


def word_piece() -> PreTrainedTokenizerBase:
    """Cuts ``annab`` into ``ann ##a ##b``; drops what is no character, as BERT's does."""
    numbers = {piece: number for number, piece in enumerate(VOCABULARY)}
    backend = Tokenizer(WordPiece(numbers, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer()
    backend.pre_tokenizer = BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


def byte_pair(*, add_prefix_space: bool) -> PreTrainedTokenizerBase:
    """RoBERTa's kind of tokenizer, on a vocabulary of a few merges."""
    learner = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learner.train_from_iterator(CORPUS, vocab_size=290, min_frequency=1, special_tokens=special)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizer(model["vocab"], merges, add_prefix_space=add_prefix_space)


def data(*sentences: Sequence[tuple[str, int]]) -> Dataset:
    return Dataset.from_dict(
        {
            "tokens": [[word for word, _ in sentence] for sentence in sentences],
            "tags": [[tag for _, tag in sentence] for sentence in sentences],
        }
    )


SENTENCES = data(
    [("Annab", 1), ("bob", 2), ("!", 0)],
    [("c", 0), ("Ann", 1), ("zebra", 0), ("cd!", 4)],
    [("Boa", 3)],
)


def word_by_word(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], tags: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Token numbers and labels from each word for itself, between the special tokens."""
    first, last = tokenizer("")["input_ids"]
    numbers, labels = [first], [-100]
    for word, tag in zip(words, tags, strict=True):
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        numbers += pieces
        labels += [tag] + [-100] * (len(pieces) - 1)
    return [*numbers, last], [*labels, -100]


def test_the_first_piece_of_a_word_carries_its_tag() -> None:
    tokenizer = word_piece()
    rows = FAMILY.encode(SENTENCES, tokenizer, Options())
    assert rows[0]["labels"] == [-100, 1, -100, -100, 2, -100, 0, -100]
    for row, example in zip(rows, SENTENCES, strict=True):
        expected = word_by_word(tokenizer, example["tokens"], example["tags"])
        assert (row["input_ids"], row["labels"]) == expected


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_byte_level_words_have_the_pieces_they_have_inside_a_sentence(
    add_prefix_space: bool,
) -> None:
    tokenizer = byte_pair(add_prefix_space=add_prefix_space)
    examples = data([("Ann", 1), ("saw", 0), ("Paris", 2)], [("unhappiness", 0)])
    assert byte_level(tokenizer)
    assert not byte_level(word_piece())
    rows = FAMILY.encode(examples, tokenizer, Options())
    oracle = byte_pair(add_prefix_space=True)
    for row, example in zip(rows, examples, strict=True):
        expected = word_by_word(oracle, example["tokens"], example["tags"])
        assert (row["input_ids"], row["labels"]) == expected
        theirs = oracle(example["tokens"], is_split_into_words=True)
        assert row["input_ids"] == theirs["input_ids"]


def test_long_sentences_are_cut_and_keep_the_end_mark() -> None:
    row = FAMILY.encode(SENTENCES, word_piece(), Options(data=DataOptions(max_seq_length=6)))[0]
    # [CLS] ann ##a ##b bo [SEP]: the second piece of the second word has no place.
    assert row["labels"] == [-100, 1, -100, -100, 2, -100]


def test_a_sentence_without_a_single_piece_is_no_training_row() -> None:
    tokenizer = word_piece()
    examples = data([("\ufffd", 0)], [("ann", 1)])
    assert len(FAMILY.encode(examples, tokenizer, Options())) == 1


def test_padding_carries_no_label() -> None:
    tokenizer = word_piece()
    rows = FAMILY.encode(SENTENCES, tokenizer, Options())
    batch = FAMILY.collator(tokenizer)(rows)
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert bool((batch["labels"][padding] == IGNORED).all())


# Evaluation


class FirstPieceTable(nn.Module):
    """Tags by the number of the piece: right at first pieces, and wrong at the others."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tag_of: dict[str, int]) -> None:
        super().__init__()
        table = torch.zeros(len(tokenizer), len(NAMES))
        table[:, 4] = 9.0
        for piece, tag in tag_of.items():
            table[tokenizer.convert_tokens_to_ids(piece)] = 9.0 * torch.eye(len(NAMES))[tag]
        self.table = table

    def forward(self, input_ids: Tensor, **others: Tensor) -> SimpleNamespace:
        assert "labels" not in others
        return SimpleNamespace(logits=self.table[input_ids])


def evaluated(examples: Dataset, tag_of: dict[str, int], *, max_seq_length: int = 64) -> Evaluation:
    tokenizer = word_piece()
    return FAMILY.evaluate(
        FirstPieceTable(tokenizer, tag_of),
        examples,
        Setting(
            cut_at(max_seq_length),
            TaskData("made", "tagging", "f1", NAMES, {"train": examples}),
            tokenizer,
        ),
        split="test",
        stage="final",
    )


TAG_OF = {"ann": 1, "bo": 2, "c": 0, "!": 0, "[UNK]": 3}
KNOWN = data(
    [("c", 0), ("annab", 1), ("bob", 2), ("bob", 2), ("!", 0)],
    [("annaaaa", 1)],
    [("zebra", 3), ("c", 0), ("annab", 1), ("cd", 0)],
)


def test_first_pieces_decide_and_every_sentence_gets_its_own_predictions() -> None:
    found = evaluated(KNOWN, TAG_OF)
    exact = ("precision", "recall", "f1", "f1_x", "f1_y", "accuracy", "coverage")
    assert {name: found.metrics[name] for name in exact} == dict.fromkeys(exact, 1.0)
    # The right tag has logit 9 against four zeros.
    expected = torch.tensor(4.0).double().mul(torch.tensor(-9.0).double().exp()).log1p()
    assert found.loss == pytest.approx(float(expected), rel=1e-12)


def test_words_cut_off_count_as_missed() -> None:
    # [CLS] c ann ##a ##b [SEP] | [CLS] ann ##a ##a ##a [SEP] | [CLS] [UNK] c ann ##a [SEP]
    found = evaluated(KNOWN, TAG_OF, max_seq_length=6)
    assert found.metrics["coverage"] == found.metrics["accuracy"] == 6 / 10
    # Of the entities, (annab bob bob) is found too short; (annaaaa), (zebra) and (annab) whole.
    assert found.metrics["recall"] == 3 / 4
    assert found.metrics["precision"] == 3 / 4


def test_an_entity_that_is_cut_off_whole_is_missed_and_nothing_is_found_in_its_place() -> None:
    found = evaluated(data([("c", 0)] * 4 + [("annab", 1)]), TAG_OF, max_seq_length=6)
    assert (found.metrics["recall"], found.metrics["precision"]) == (0.0, None)
    assert found.metrics["accuracy"] == 4 / 5


def test_a_word_that_the_tokenizer_drops_is_missed_and_the_next_ones_keep_their_place() -> None:
    examples = data([("\ufffd", 3), ("ann", 1), ("\ufffd", 0), ("bob", 2)], [("\ufffd", 1)])
    found = evaluated(examples, TAG_OF)
    # True: y | x (1-1) | x (3-3) || x; predicted: O x O x || O.
    assert found.metrics["f1_y"] == 0.0
    assert found.metrics["precision"] == 1.0
    assert found.metrics["recall"] == 2 / 4
    assert found.metrics["coverage"] == found.metrics["accuracy"] == 2 / 5


def test_no_word_left_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(UsageError, match="--max_seq_length"):
        evaluated(data([("\ufffd", 0)]), TAG_OF)


# Tasks


def test_tags_are_numbered_over_all_splits_and_unseen_types_are_said() -> None:
    raw = {
        "train": Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["B-x", "O"]]}),
        "test": Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["I-x", "B-y"]]}),
    }
    found = tagging_data("made", raw, words="tokens", tags="tags")
    assert found.label_names == ("O", "B-x", "I-x", "B-y")
    assert found.splits["test"]["tags"][:] == [[2, 3]]
    assert (found.kind, found.metric, found.num_labels) == ("tagging", "f1", 4)
    assert found.notes == ("the test split has entities that training lacks: ['y']",)


def test_an_unusual_scheme_is_said() -> None:
    raw = {"train": Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["I-x", "B-x"]]})}
    assert "IOB1" in tagging_data("made", raw, words="tokens", tags="tags").notes[0]


def test_numbers_have_the_names_of_their_feature_or_those_given() -> None:
    rows = {"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}
    features = Features(
        tokens=List(Value("string")), ner_tags=List(ClassLabel(names=["O", "B-x", "I-x"]))
    )
    named = Dataset.from_dict(rows, features=features)
    found = tagging_data("made", {"train": named}, words="tokens", tags="ner_tags")
    assert found.label_names == ("O", "B-x", "I-x")
    plain = {"train": Dataset.from_dict(rows)}
    given = tagging_data(
        "made", plain, words="tokens", tags="ner_tags", tag_names=("O", "B-z", "I-z")
    )
    assert given.label_names == ("O", "B-z", "I-z")
    assert given.splits["train"]["tags"][:] == [[1, 0]]
    with pytest.raises(UsageError, match=r"tags \[1, 0\], which have no names"):
        tagging_data("made", plain, words="tokens", tags="ner_tags")


@pytest.mark.parametrize(
    "rows,message",
    [
        ({"tokens": [["a", "b"]], "tags": [["O"]]}, "2 words but 1 tags in row 1"),
        ({"words": [["a"]], "tags": [["O"]]}, r"no column 'tokens'.*--text_columns"),
        ({"tokens": [["a"]], "labels": [["O"]]}, r"no column 'tags'.*--label_column"),
        ({"tokens": ["a"], "tags": [["O"]]}, r"'tokens' must hold a list a row"),
    ],
)
def test_rows_that_are_no_tagged_sentences_are_errors(rows: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tagging_data("made", {"train": Dataset.from_dict(rows)}, words="tokens", tags="tags")


def test_rows_without_words_are_left_out_and_said() -> None:
    rows = {"tokens": [[], ["a"]], "tags": [[], ["O"]]}
    raw = {"train": Dataset.from_dict(rows, Features({n: List(Value("string")) for n in rows}))}
    found = tagging_data("made", raw, words="tokens", tags="tags")
    assert len(found.splits["train"]) == 1
    assert found.notes == ("1 rows of the train split have no words",)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_json_lists_are_read_and_their_columns_found_or_named(tmp_path: Path, kind: str) -> None:
    rows = [{"words": ["a", "b"], "ner_tags": ["B-x", "O"], "pos": ["N", "V"], "id": 1}]
    file = tmp_path / f"train.{kind}"
    file.write_text(json.dumps(rows) if kind == "json" else json.dumps(rows[0]))
    found = FAMILY.load_task(DataOptions(train_file=str(file)))
    assert found.splits["train"][0] == {"tokens": ["a", "b"], "tags": [1, 0]}
    named = DataOptions(train_file=str(file), text_columns=["pos"], label_column="ner_tags")
    assert FAMILY.load_task(named).splits["train"][0]["tokens"] == ["N", "V"]


@pytest.mark.parametrize("ending", ["conll", "iob", "tsv", "txt"])
def test_a_folder_of_tagged_files_is_read_by_their_names(tmp_path: Path, ending: str) -> None:
    for split in ("train", "devel", "test"):
        conll(tmp_path, f"{split}\tB-x\n", f"{split}.{ending}")
    found = FAMILY.load_task(DataOptions(data_dir=str(tmp_path)))
    words = {split: rows["tokens"][0] for split, rows in found.splits.items()}
    assert words == {"train": ["train"], "validation": ["devel"], "test": ["test"]}


def test_one_word_column_is_enough(tmp_path: Path) -> None:
    file = conll(tmp_path, "a\tO\n")
    with pytest.raises(UsageError, match="one column of words"):
        FAMILY.load_task(DataOptions(train_file=str(file), text_columns=["a", "b"]))


# Real data


@pytest.mark.parametrize(
    "name,sizes,num_entities",
    [
        # The counts of entities are those of B- tags, counted by awk.
        ("wnut17", (3394, 1009, 1287), (1975, 836, 1079)),
        ("ncbi_disease", (5424, 923, 940), (5134, 787, 960)),
    ],
)
def test_a_local_data_set_is_read_whole(
    shared_data: Path, name: str, sizes: tuple[int, ...], num_entities: tuple[int, ...]
) -> None:
    found = FAMILY.load_task(DataOptions(task_name=name, data_dir=str(shared_data)))
    assert tuple(map(len, found.splits.values())) == sizes
    starts = {number for number, tag in enumerate(found.label_names) if tag[0] == "B"}
    counts = [
        sum(tag in starts for row in rows["tags"] for tag in row) for rows in found.splits.values()
    ]
    assert tuple(counts) == num_entities
    assert found.notes == ()
    assert found.metric == "f1"


def test_local_rows_hold_the_right_words(shared_data: Path) -> None:
    found = FAMILY.load_task(DataOptions(task_name="wnut17", data_dir=str(shared_data / "wnut17")))
    row = found.splits["train"][1]
    assert row["tokens"][:5] == ["From", "Green", "Newsfeed", ":", "AHFA"]
    assert found.label_names[row["tags"][4]] == "B-group"
    tags = Counter(tag for row in found.splits["test"]["tags"] for tag in row)
    assert tags[found.label_names.index("I-creative-work")] == 218


def test_a_task_of_another_command_is_refused_with_its_name() -> None:
    with pytest.raises(UsageError, match=r"'sst2' is a task of python -m applications\.nlu"):
        FAMILY.load_task(DataOptions(task_name="sst2"))
