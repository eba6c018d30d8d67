"""The metrics, against cases that were counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.tasks.metrics import (
    answers,
    bootstrap_counts,
    entities,
    multi_label,
    no_relation,
    overlap,
    relations,
    single_label,
)


def test_entities_are_right_only_with_both_ends_and_the_type() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"], ["O", "O"]]
    said = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "O"], ["O", "B-LOC"]]
    scores = entities(gold, said)
    # Right: one LOC. Said wrongly: PER too short, PER for ORG, LOC for nothing. Missed: PER, ORG.
    assert scores.figures["entity_precision"].mean == pytest.approx(1 / 4)
    assert scores.figures["entity_recall"].mean == pytest.approx(1 / 3)
    assert scores.value == pytest.approx(2 / 7)
    assert {row.name: (row.f1, row.support) for row in scores.classes} == {
        "LOC": (pytest.approx(2 / 3), 1),
        "ORG": (0.0, 1),
        "PER": (0.0, 1),
    }
    assert scores.figures["token_accuracy"].mean == pytest.approx(5 / 8)
    assert scores.figures["macro_f1"].mean == pytest.approx(2 / 9)


def test_the_report_by_tag_counts_words() -> None:
    scores = entities([["B-PER", "I-PER", "O", "O"]], [["B-PER", "O", "O", "O"]])
    rows = {row.name: row for row in scores.tokens}
    assert (rows["O"].precision, rows["O"].recall, rows["O"].support) == (pytest.approx(2 / 3), 1.0, 2)
    assert (rows["I-PER"].recall, rows["I-PER"].support) == (0.0, 1)
    assert rows["weighted avg"].support == 4


def test_a_relation_the_wrong_way_round_is_wrong_and_none_is_no_class() -> None:
    labels = ["Cause(e1,e2)", "Cause(e2,e1)", "Part(e1,e2)", "Part(e2,e1)", "Other"]
    gold = ["Cause(e1,e2)", "Cause(e1,e2)", "Part(e2,e1)", "Other", "Other"]
    said = ["Cause(e1,e2)", "Cause(e2,e1)", "Part(e2,e1)", "Part(e1,e2)", "Other"]
    scores = relations(gold, said, labels)
    # Cause: one right, one wrong way round, which is said wrongly and missed. Part: one right, one said wrongly.
    assert {row.name: row.f1 for row in scores.classes} == {"Cause": pytest.approx(0.5), "Part": pytest.approx(2 / 3)}
    assert scores.value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.figures["accuracy"].mean == pytest.approx(3 / 5)


def test_what_stands_for_no_relation_is_found_by_name() -> None:
    assert no_relation(["A", "no_relation"]) == "no_relation"
    assert no_relation(["A", "B"]) is None


@pytest.mark.parametrize(
    ("gold", "said", "f1"),
    [
        ("the Denver Broncos", "Denver Broncos", 1.0),
        ("Denver Broncos", "the broncos!", 2 / 3),
        ("in 1998", "1999", 0.0),
        ("", "", 1.0),
        ("", "something", 0.0),
        ("北京大学", "北京", 2 / 3),
        ("北京。", "北京", 1.0),
        ("2019年", "2019年底", 4 / 5),
    ],
)
def test_f1_of_answers_counts_words_and_characters_of_scripts_without_spaces(gold: str, said: str, f1: float) -> None:
    assert overlap(gold, said) == pytest.approx(f1)


def test_answers_take_the_best_of_those_that_count_and_tell_no_answer_apart() -> None:
    scores = answers([["one dog", "a dog"], ["cat"], []], ["dog", "a cow", ""])
    assert scores.figures["exact_match"].mean == pytest.approx(2 / 3)
    assert scores.value == pytest.approx(2 / 3)
    assert scores.figures["f1_answered"].mean == pytest.approx(1 / 2)
    assert scores.figures["f1_no_answer"].mean == 1.0


def test_single_labels_have_accuracy_and_macro_f1() -> None:
    scores = single_label(["a", "a", "b", "c"], ["a", "b", "b", "b"], ["a", "b", "c"])
    assert scores.value == 0.5
    assert scores.figures["macro_f1"].mean == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.confusion == {"a": {"a": 1, "b": 1}, "b": {"b": 1}, "c": {"b": 1}}


def test_macro_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    for _ in range(20):
        gold, said = (list(generator.choice(["a", "b", "c", "d"], size=30)) for _ in range(2))
        found = single_label(gold, said, ["a", "b", "c", "d"]).figures["macro_f1"].mean
        assert found == pytest.approx(f1_score(gold, said, average="macro"))


def test_sets_of_labels_have_micro_f1() -> None:
    scores = multi_label([("a", "b"), ("c",), ()], [("a",), ("b", "c"), ()], ["a", "b", "c"])
    assert scores.value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores.figures["exact"].mean == pytest.approx(1 / 3)


def test_the_interval_holds_the_figure_and_narrows_with_more_examples() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for count in (40, 400):
        right = generator.random(count) < 0.7
        counts = np.stack([right, ~right, ~right], axis=-1)[:, None, :].astype(float)
        found = bootstrap_counts(
            counts, lambda sums: (2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1:].sum(-1))).mean(-1)
        )
        assert found.low <= found.mean <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2
