"""Questions and chats are read with their ratings, and every answer of a chat is an example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import DatasetError
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.readers import read_file
from tuner.tasks.data.records import ChatTurn, ConverseExample
from tuner.tasks.data.splits import split_examples


def test_answers_with_a_low_rating_are_left_out_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer,rating\nWhere?,Here.,5\nWhen?,No idea!,1\nHow?,So.,\nWhy?,Hm.,3\n", "utf-8")
    said: list[str] = []
    kept = read_file("converse", path, say=said.append)
    assert [one.answer for one in kept if isinstance(one, ConverseExample)] == ["Here.", "So."]
    assert "2 of 4 answers are left out, rated not above 3 of 1 to 5 in column 'rating'" in said[0]
    assert len(read_file("converse", path, Columns(least_rating=3))) == 3
    path.write_text("question,answer,rating\nWhere?,Here.,good\nWhen?,No!,bad\n", "utf-8")
    assert len(read_file("converse", path)) == 1
    path.write_text("question,answer,rating\nWhere?,Here.,fair\nWhen?,No!,bad\n", "utf-8")
    with pytest.raises(DatasetError, match=r"a\.csv:2: rating 'fair'"):
        read_file("converse", path)


CHAT = [
    {"role": "usr", "content": "Hello"},
    {"role": "usr", "content": "Is it open?"},
    {"role": "sys", "content": "Until six."},
    {"role": "usr", "content": "Thanks"},
    {"role": "sys", "content": "Welcome!"},
]


def test_every_answer_of_a_chat_is_an_example_and_a_chat_stays_in_one_split(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({f"c{number}": {"messages": CHAT} for number in range(12)}), "utf-8")
    found = read_file("converse", path)
    assert len(found) == 24
    first, second = found[:2]
    assert isinstance(first, ConverseExample)
    assert isinstance(second, ConverseExample)
    assert first.turns == (ChatTurn("customer", "Hello\nIs it open?"),)
    assert (first.answer, second.answer) == ("Until six.", "Welcome!")
    assert [one.speaker for one in second.turns] == ["customer", "agent", "customer"]
    path.write_text(
        json.dumps(
            {f"c{n}": {"messages": [{**one, "content": f"{one['content']} {n}"} for one in CHAT]} for n in range(12)}
        )
    )
    splits = split_examples(read_file("converse", path), [], [])
    chats = [{one.chat for one in some} for some in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, chats)) == 12


def test_a_turn_a_row_is_a_chat_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("chat_id,speaker,text\n1,customer,Hi\n1,agent,Hello!\n2,user,Open?\n2,assistant,Yes.\n", "utf-8")
    assert [one.answer for one in read_file("converse", path) if isinstance(one, ConverseExample)] == ["Hello!", "Yes."]
    path.write_text("chat_id,speaker,text\n1,customer,Hi\n1,ghost,Hello!\n", "utf-8")
    with pytest.raises(DatasetError, match="turn 2 is by 'ghost'"):
        read_file("converse", path)
