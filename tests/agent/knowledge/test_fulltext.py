from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.knowledge.fulltext import MOST_TERMS, TOKENIZER, match_terms, segment, select_terms


def test_scripts_without_spaces_are_indexed_as_pairs_and_single_characters() -> None:
    assert segment("退货政策 in").split() == ["退货", "货政", "政策", "退", "货", "政", "策", "in"]
    assert segment("plain words, as they are") == "plain words, as they are"


def test_full_width_characters_match_plain_ones() -> None:
    assert match_terms("\uff21\uff22\uff23\uff11\uff12\uff13") == {'"abc123"': 1}


def test_a_query_is_its_words_and_pairs() -> None:
    assert list(match_terms('Where is "order-77"?')) == ['"where"', '"is"', '"order"', '"77"']
    assert list(match_terms("退货政")) == ['"退货"', '"货政"', '"退"', '"货"', '"政"']
    assert list(match_terms("退")) == ['"退"']
    assert match_terms("?! ...") == {}


def test_repetitions_in_a_query_are_counted() -> None:
    assert match_terms("Tent, stove, tent!") == {'"tent"': 2, '"stove"': 1}


def test_rare_and_repeated_terms_are_selected_first_and_unknown_terms_are_left_out() -> None:
    counts = {"the": 990, "tent": 40, "refund": 40, "numbat": 2, "unheard": 0}
    repeats = {"the": 4, "tent": 1, "refund": 3, "numbat": 1, "unheard": 1}
    assert list(select_terms(repeats, counts, 1000)) == ["refund", "numbat", "tent", "the"]
    many = {f"w{number}": 1 for number in range(2 * MOST_TERMS)}
    assert len(select_terms(many, dict.fromkeys(many, 1), 1000)) == MOST_TERMS


@pytest.fixture(scope="module")
def index() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE VIRTUAL TABLE t USING fts5(text, content='', tokenize='{TOKENIZER}')")
    return connection


TEXTS = st.text(alphabet=st.sampled_from("ab 退货政策かなไทย한글\"*()-:^'Éé12"), max_size=30)


@given(TEXTS, TEXTS, TEXTS)
def test_any_part_of_a_text_is_found_by_it(index: sqlite3.Connection, before: str, part: str, behind: str) -> None:
    """What is asked for is data: no sign of it is read as an operator."""
    index.execute("INSERT INTO t (t) VALUES ('delete-all')")
    index.execute("INSERT INTO t (rowid, text) VALUES (1, ?)", (segment(f"{before} {part} {behind}"),))
    terms = match_terms(part)
    if terms:
        assert index.execute("SELECT rowid FROM t WHERE t MATCH ?", (" AND ".join(terms),)).fetchall() == [(1,)]
