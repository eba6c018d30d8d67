from __future__ import annotations

from agent.knowledge.fusion import fuse, is_near_duplicate


def test_what_both_find_comes_first() -> None:
    assert fuse({"a": 0.6, "b": 0.55, "c": 0.1}, {"b": 7.0, "c": 5.0})[0] == "b"


def test_one_of_the_two_alone_keeps_its_order() -> None:
    assert fuse({"a": 0.9, "b": 0.8}, {}) == ["a", "b"]
    assert fuse({}, {"b": 3.0, "a": 2.0}) == ["b", "a"]
    assert fuse({}, {}) == []


def test_an_encoder_that_cannot_read_the_question_has_no_say() -> None:
    near, words = {"a": 0.9, "b": 0.1}, {"a": 3.0, "b": 4.0}
    assert fuse(near, words) == ["a", "b"]
    assert fuse(near, words, coverage=0.0) == ["b", "a"]


def test_texts_that_differ_in_a_number_do_not_say_the_same() -> None:
    text = "You may send a tent back within 30 days, unused and in its bag, and get all of your money"
    assert is_near_duplicate(text, text.upper() + ".")
    assert not is_near_duplicate(text, text.replace("30", "60"))
    assert not is_near_duplicate(text, "Something else")
