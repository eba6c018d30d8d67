"""Tags of any scheme become IOB2 with the same chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.tasks.data.schemes import Chunk, chunks_to_iob2, find_chunks, may_follow, to_iob2

CHUNKS = [("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 5), ("ORG", 5, 8)]
IOB2 = ("B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-ORG", "I-ORG", "I-ORG")


@pytest.mark.parametrize(
    "tags",
    [
        IOB2,
        ("I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-ORG", "I-ORG", "I-ORG"),
        ("B-PER", "E-PER", "S-PER", "O", "S-LOC", "B-ORG", "I-ORG", "E-ORG"),
        ("B-PER", "L-PER", "U-PER", "O", "U-LOC", "B-ORG", "I-ORG", "L-ORG"),
        ("B-PER", "E-PER", "S-PER", "O", "S-LOC", "B-ORG", "M-ORG", "E-ORG"),
        ("B_PER", "I_PER", "B_PER", "O", "B_LOC", "B_ORG", "I_ORG", "I_ORG"),
    ],
    ids=["IOB2", "IOB1", "BIOES", "BILOU", "BMES", "underscore"],
)
def test_every_scheme_is_read_as_the_same_chunks(tags: tuple[str, ...]) -> None:
    assert to_iob2(tags) == IOB2
    assert find_chunks(tags) == CHUNKS


@pytest.mark.parametrize("tag", ["NN", "X-PER", "B-", "PER", "-PER"])
def test_what_is_no_tag_is_refused_by_name(tag: str) -> None:
    with pytest.raises(ValueError, match="is not a tag; expected O"):
        to_iob2(["O", tag])


@st.composite
def some_chunks(draw: st.DrawFn) -> tuple[list[Chunk], int]:
    found, place = [], 0
    for kind, gap, length in draw(st.lists(st.tuples(st.sampled_from("XYZ"), st.integers(0, 2), st.integers(1, 3)))):
        found.append((kind, place + gap, place + gap + length))
        place += gap + length
    return found, place + draw(st.integers(0, 2))


@given(some_chunks())
def test_tags_of_chunks_give_the_same_chunks(made: tuple[list[Chunk], int]) -> None:
    found, count = made
    tags = chunks_to_iob2(found, count)
    assert len(tags) == count
    assert find_chunks(tags) == found
    assert to_iob2(tags) == tags


@given(some_chunks())
def test_tags_that_may_follow_each_other_are_iob2(made: tuple[list[Chunk], int]) -> None:
    tags = chunks_to_iob2(*made)
    assert all(may_follow(tag, before) for before, tag in zip(("O", *tags), tags, strict=False))
    assert not may_follow("I-X", "O")
    assert not may_follow("I-X", "B-Y")
