"""Texts are split into sentences, in English and in Chinese."""

from __future__ import annotations

import pytest

from agent.text.sentences import split_line, split_sentences, split_sentences_by_line


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("It rains. Take 4.5 coats! Why?", ["It rains.", "Take 4.5 coats!", "Why?"]),
        ("Dr. Owl lives at St. Ives. He sleeps.", ["Dr. Owl lives at St. Ives.", "He sleeps."]),
        ("The U.S. post is slow. Ours is not.", ["The U.S. post is slow.", "Ours is not."]),
        ("Take bus No. 7 there. I say no. 7 is late.", ["Take bus No. 7 there.", "I say no. 7 is late."]),
        ("He said no. She left.", ["He said no.", "She left."]),
        ('"Go away!" he cried. "I will." They went.', ['"Go away!" he cried.', '"I will."', "They went."]),
        ("包裹已发货。五月九日到达\uff01谢谢", ["包裹已发货。", "五月九日到达\uff01", "谢谢"]),
        ("他说\uff1a“走吧。”我们走了。", ["他说\uff1a“走吧。”", "我们走了。"]),
        ("One line\ngoes on.\n\nAnother", ["One line goes on.", "Another"]),
        ("# Fees\n- A costs 3.\n- B is free", ["Fees", "A costs 3.", "B is free"]),
        ("... !? \n\n---", []),
        ("", []),
    ],
)
def test_a_text_is_split_where_its_sentences_end(text: str, cut: list[str]) -> None:
    assert list(split_sentences(text)) == cut


def test_a_line_break_ends_a_sentence_only_on_request() -> None:
    assert list(split_sentences("It is\npacking")) == ["It is packing"]
    assert list(split_sentences_by_line("It is\npacking")) == ["It is", "packing"]


def test_splitting_a_line_drops_only_the_space_between_sentences() -> None:
    line = '- He said "stop."  Then ... he left'
    assert list(split_line(line)) == ['- He said "stop."', "Then ...", "he left"]
    assert list(split_line("")) == [""]
