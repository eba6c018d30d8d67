"""The questions of the benchmark are split once and for all, and no question is on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.encoder_gain import SETS, _distinct, encoder_gain, half_of
from tests.bench.retrieval_sets import Question, retrieval_sets

DATA = Path(__file__).parents[3] / "shared" / "data"


def test_the_half_of_a_question_is_that_of_its_text_alone() -> None:
    halves = [half_of(f"question {number}") for number in range(400)]
    assert halves == [half_of(f" question {number}\n") for number in range(400)]
    assert 150 < halves.count("test") < 250


def test_a_question_that_is_asked_twice_is_one_with_all_its_answers() -> None:
    questions = [Question("How? ", frozenset("a")), Question("How?", frozenset("b")), Question("Why?", frozenset("c"))]
    assert _distinct(questions) == [Question("How?", frozenset("ab")), Question("Why?", frozenset("c"))]


def test_without_the_data_there_is_nothing_to_measure(tmp_path: Path) -> None:
    assert encoder_gain(tmp_path) == {}


@pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not on this machine")
def test_both_halves_of_each_set_have_questions() -> None:
    for one in retrieval_sets(DATA):
        if one.name in SETS:
            halves = [half_of(question.text) for question in _distinct(one.questions)]
            assert min(halves.count("train"), halves.count("test")) > 20
