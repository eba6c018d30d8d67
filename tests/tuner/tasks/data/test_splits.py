"""Nothing is in two parts, each class has its share, and what is odd about the data is told."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DatasetError
from tuner.tasks.data.records import AnswerExample, ClassifyExample, TagExample
from tuner.tasks.data.splits import split_examples, stratified_split
from tuner.tasks.data.words import split_words


def texts(count: int, label: str = "a", start: int = 0) -> list[ClassifyExample]:
    return [
        ClassifyExample(f"text {label} {at}", (label,), source=f"file:{at + 1}") for at in range(start, start + count)
    ]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 5))
def test_each_class_gives_its_share_and_keeps_at_least_one(sizes: list[int], seed: int) -> None:
    examples = [one for label, size in zip("abcde", sizes, strict=False) for one in texts(size, label)]
    left, taken = stratified_split(examples, 0.2, seed)
    assert sorted(one.text for one in [*left, *taken]) == sorted(one.text for one in examples)
    for label, size in zip("abcde", sizes, strict=False):
        count = sum(1 for one in taken if one.labels == (label,))
        assert count <= size - 1 or count == 0
        assert abs(count - 0.2 * size) <= 1
    assert stratified_split(examples, 0.2, seed) == (left, taken)


def test_questions_about_one_context_stay_together() -> None:
    examples = [AnswerExample(f"question {at}", f"context {at // 5}") for at in range(100)]
    left, taken = stratified_split(examples, 0.2, 0)
    assert not {one.context for one in left} & {one.context for one in taken}
    assert len(taken) == 20


def test_a_text_that_is_in_the_test_as_well_is_refused_by_line() -> None:
    train, test = texts(40), [ClassifyExample("TEXT  a 3", ("a",)), *texts(5, "b", 50)]
    with pytest.raises(
        DatasetError, match=r"1 of 40 training examples have the text of one in the test set \(file:4\).*--leakage drop"
    ):
        split_examples(train, [], test)
    dropped = split_examples(train, [], test, leakage="drop")
    assert "text a 3" not in {one.text for one in [*dropped.train, *dropped.validation]}
    assert len(dropped.test) == 6
    kept = split_examples(train, [], test, leakage="keep")
    assert "text a 3" in {one.text for one in [*kept.train, *kept.validation]}
    assert any("were kept as asked" in note for note in kept.notes)


def test_short_sentences_of_a_tagging_may_recur() -> None:
    short, long = "LONDON 1996 - 08", "The same long sentence is in both files ."
    tagged = {
        text: TagExample(text, split_words(text), ("B-X", *["O"] * (len(split_words(text)) - 1)))
        for text in (short, long)
    }
    others = [TagExample(f"a b c {at}", split_words(f"a b c {at}"), ("B-X", "O", "O", "O")) for at in range(30)]
    split_examples([tagged[short], *others], [], [tagged[short]])
    with pytest.raises(DatasetError, match="1 of 31 training examples"):
        split_examples([tagged[long], *others], [], [tagged[long]])


def test_duplicates_count_once_and_contradictions_are_reported() -> None:
    train = [*texts(20), *texts(3), ClassifyExample("text a 0", ("b",))]
    made = split_examples(train, [], [], seed=1)
    assert "3 training examples are there twice and count once" in made.notes
    assert any("1 training texts are there with different labels" in note for note in made.notes)
    count = Counter(one.text for one in [*made.train, *made.validation, *made.test])
    assert count["text a 1"] == 1
    parts = [{one.text for one in some} for some in (made.train, made.validation, made.test)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


def test_uneven_rare_and_unknown_classes_are_reported() -> None:
    made = split_examples([*texts(90), *texts(3, "b")], texts(2, "a", 200), [*texts(4, "a", 300), *texts(1, "c")])
    assert any(note.startswith("classes are uneven: a has 90 training examples, b has 3") for note in made.notes)
    assert any(note.startswith("1 classes have fewer than 5 training examples: b") for note in made.notes)
    assert any(note.startswith("1 labels are in the test alone and will be wrong: c") for note in made.notes)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(DatasetError, match="of 2 examples none is left to"):
        split_examples(texts(2), [], [])
