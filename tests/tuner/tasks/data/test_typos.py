"""Mistyped examples keep their labels, and what points into the text points at the same words."""

from __future__ import annotations

import random

import pytest

from tuner.tasks.data.marked import parse_marked_text
from tuner.tasks.data.records import AnswerExample, AnswerSpan, ClassifyExample, TagExample, display_text
from tuner.tasks.data.typos import add_typos, mistype_word
from tuner.tasks.data.words import join_words


def test_a_mistake_swaps_drops_doubles_or_changes_case_and_spares_the_first_letter() -> None:
    chance = random.Random(0)
    made = {mistype_word("parcel", chance) for _ in range(300)}
    assert {"pracel", "pacel", "parrcel", "PARCEL"} <= made
    assert all(word.lower().startswith("p") and word != "parcel" for word in made)


def test_longer_words_are_mistyped_by_their_share_and_the_rest_stays() -> None:
    one = ClassifyExample("where is parcel AB12345 of the customer 包裹在哪里", ("track",), pair="your parcel")
    changed = add_typos(one, random.Random(1), 1.0)
    words = changed.text.split()
    assert [words[at] for at in (1, 3, 4, 5, 7)] == ["is", "AB12345", "of", "the", "包裹在哪里"]
    assert all(words[at] != old for at, old in ((0, "where"), (2, "parcel"), (6, "customer")))
    assert changed.labels == ("track",)
    assert changed.pair != one.pair
    assert add_typos(one, random.Random(1), 0.0) == one


def test_tags_stay_with_their_words() -> None:
    words = ("Anna", "Schmidt", "lives", "in", "Berlin", "now")
    text, offsets = join_words(words)
    changed = add_typos(TagExample(text, offsets, ("B-PER", "I-PER", "O", "O", "B-LOC", "O")), random.Random(3), 1.0)
    assert len(changed.words) == len(words)
    assert [new[0].lower() for new in changed.words] == [old[0].lower() for old in words]
    assert (changed.words[3], changed.words[5]) == ("in", "now")


@pytest.mark.parametrize("seed", range(20))
def test_a_relation_still_marks_the_same_entities(seed: int) -> None:
    one = parse_marked_text("the <e2>engine room</e2>s of several <e1>steamships</e1> exploded", "part")
    changed = add_typos(one, random.Random(seed), 0.7)
    (first, first_end), (second, second_end) = changed.first, changed.second
    assert changed.text[first - 1] == " "
    assert changed.text[first_end] == " "
    assert changed.text[first].lower() == "s"
    assert changed.text[second:second_end].count(" ") == 1
    assert changed.text[second_end] == "s"
    assert display_text(changed).count("<e1>") == 1


def test_of_a_question_the_context_stays() -> None:
    one = AnswerExample("which harbour froze", "The harbour of Oslo froze.", (AnswerSpan("Oslo", 15),))
    changed = add_typos(one, random.Random(0), 1.0)
    assert changed.question != one.question
    assert (changed.context, changed.answers) == (one.context, one.answers)
