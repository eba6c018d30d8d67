"""Tokens, words and characters stand for the same stretches of a text, in whatever windows they went through."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuner.tasks.tiny_encoder import save_encoder
from tuner.tasks.data.records import Span, TagExample
from tuner.tasks.data.words import join_words, spans_from_tags, split_words, tag_words
from tuner.tasks.head.tag import TagTask
from tuner.tasks.head.token_alignment import (
    IGNORED,
    is_first_of_word,
    overlapping_chunks,
    special_tokens,
    text_ids,
    word_ids,
    word_targets,
)

WORDS = (
    "Anna",
    "Paris",
    "lives",
    "in",
    "unbelievable",
    "naïve",
    "北京",
    "x",
    "don't",
    "U.S.A.",
    "e-mail",
    "№",
    "\u200d",
)
PIECES = ("Anna", "Paris", "live", "in", "un")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder: Path = save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", [one.lower() for one in PIECES])
    return AutoTokenizer.from_pretrained(str(folder))


sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30)


@given(st.integers(0, 300), st.integers(2, 60), st.data())
def test_windows_cover_all_tokens_and_each_token_is_owned_once(count: int, room: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    found = overlapping_chunks(count, room, overlap)
    assert all(0 <= one.start <= one.own <= one.own_end <= one.end <= one.start + room for one in found)
    assert [at for one in found for at in range(one.own, one.own_end)] == list(range(count))
    for before, after in pairwise(found):
        assert before.end - after.start >= min(overlap, count)


@given(words=sentences, room=st.integers(6, 40))
def test_each_word_with_a_token_has_one_target_at_its_first(tokenizer: Any, words: Sequence[str], room: int) -> None:
    _, places = word_ids(tokenizer, words)
    found = [
        target
        for piece in overlapping_chunks(len(places), room, room // 4)
        for target in word_targets(places, range(len(words)), piece)
        if target != IGNORED
    ]
    assert found == sorted(set(places))


def test_the_other_tokens_of_a_word_and_special_ones_are_ignored(tokenizer: Any) -> None:
    example = tag_words("Anna lives in unbelievable", [Span(0, 4, "PER")])
    task = TagTask(("O", "B-PER", "I-PER"))
    (window,) = task.windows([example], tokenizer, 64)
    tokens = tokenizer.convert_ids_to_tokens(window.ids)
    assert tokens[:3] == ["[CLS]", "anna", "live"]
    kept = {at for at, target in enumerate(window.targets) if target != IGNORED}
    assert [tokens[at] for at in sorted(kept)] == ["anna", "live", "in", "un"]
    assert [window.targets[at] for at in sorted(kept)] == [1, 0, 0, 0]


@given(words=sentences, room=st.integers(8, 30), seed=st.integers(0, 1000))
def test_tags_that_went_through_tokens_and_windows_come_back_in_characters(
    tokenizer: Any, words: Sequence[str], room: int, seed: int
) -> None:
    """The head is one that is always right, so what comes back shows the alignment alone."""
    import random

    import numpy as np

    chance = random.Random(seed)
    text, offsets = join_words(words)
    tags: list[str] = []
    for word in words:
        goes_on = tags and tags[-1] != "O" and chance.random() < 0.5
        has_token = bool(tokenizer(word, add_special_tokens=False)["input_ids"])
        tag = f"I-{tags[-1][2:]}" if goes_on else chance.choice(("O", "B-A", "B-B"))
        tags.append(tag if has_token else "O")
    task = TagTask(("O", "B-A", "I-A", "B-B", "I-B"))
    example = TagExample(text, offsets, tuple(tags))
    windows = task.windows([example], tokenizer, room)
    right = [np.full((len(one.ids), 5), -9.0) for one in windows]
    for window, scores in zip(windows, right, strict=True):
        for at, target in enumerate(window.targets):
            scores[at, int(target) if target != IGNORED else chance.randrange(5)] = 9.0
    (said,) = task.predict([example], windows, right)
    assert said.tags == tuple(tags)
    assert said.spans == tuple(spans_from_tags(offsets, tags))
    for span in said.spans:
        inside = [
            word for word, (start, end) in zip(words, offsets, strict=True) if span.start <= start and end <= span.end
        ]
        assert text[span.start : span.end] == join_words(inside)[0]


@given(st.text(max_size=80))
def test_words_hold_every_character_but_white_space_once(text: str) -> None:
    places = split_words(text)
    assert "".join(text[start:end] for start, end in places) == "".join(one for one in text if not one.isspace())
    assert all(before[1] <= after[0] for before, after in pairwise(places))


@given(st.text(alphabet="ab 北京.,\n", max_size=40), st.data())
def test_spans_of_characters_come_back_from_tags_of_words(text: str, data: st.DataObject) -> None:
    edges = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [
        Span(start, end, "X")
        for start, end in zip(edges[::2], edges[1::2], strict=False)
        if text[start:end].strip() == text[start:end] != ""
    ]
    example = tag_words(text, spans)
    assert spans_from_tags(example.offsets, example.tags) == spans


def test_scripts_without_spaces_are_split_and_joined_by_character() -> None:
    assert split_words("去北京 now") == ((0, 1), (1, 2), (2, 3), (4, 7))
    assert join_words(["去", "北", "京", "now"])[0] == "去北京 now"


def test_the_frame_is_what_the_tokenizer_puts_around(tokenizer: Any) -> None:
    begins, ends = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert special_tokens(tokenizer).before == (begins,)
    pair = special_tokens(tokenizer, pair=True)
    assert (pair.before, pair.between, pair.after) == ((begins,), (ends,), (ends,))


@given(st.text(alphabet="Anna lives.北é-", max_size=40))
def test_tokens_stand_for_their_characters(tokenizer: Any, text: str) -> None:
    ids, offsets = text_ids(tokenizer, text)
    assert len(ids) == len(offsets)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)


def test_the_first_token_of_a_word_comes_after_another_word() -> None:
    assert [is_first_of_word([0, 0, 1, 2, 2], at) for at in range(5)] == [True, False, True, True, False]
