"""Converts tags of words from any common scheme to IOB2, and IOB2 to chunks.

Reads IOB1, IOB2, IO, BIOES and BILOU (`L-` and `U-` for `E-` and `S-`), `B_` in place of `B-`, and spaces around a tag.
A chunk that begins with `I-` is read as one that begins there, as conlleval does.
"""

from __future__ import annotations

from collections.abc import Sequence

OUTSIDE = "O"
_STARTS = frozenset("BSU")
_KNOWN = frozenset("BIESLUM")

Chunk = tuple[str, int, int]
"""Type, first word, word after the last."""


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """Convert tags to IOB2 with the same chunks. Raises ValueError, naming the tag, for a tag of no known scheme."""
    converted: list[str] = []
    before_prefix, before_kind = OUTSIDE, ""
    for tag in tags:
        prefix, kind = _parts(tag)
        if prefix == OUTSIDE:
            converted.append(OUTSIDE)
        else:
            goes_on = prefix not in _STARTS and kind == before_kind and before_prefix not in (OUTSIDE, *"ESLU")
            converted.append(f"{'I' if goes_on else 'B'}-{kind}")
        before_prefix, before_kind = prefix, kind
    return tuple(converted)


def find_chunks(tags: Sequence[str]) -> list[Chunk]:
    """Return the chunks of tags, in order."""
    chunks: list[Chunk] = []
    for place, tag in enumerate(to_iob2(tags)):
        if tag.startswith("B-"):
            chunks.append((tag[2:], place, place + 1))
        elif tag.startswith("I-"):
            kind, start, _ = chunks.pop()
            chunks.append((kind, start, place + 1))
    return chunks


def chunks_to_iob2(chunks: Sequence[Chunk], count: int) -> tuple[str, ...]:
    """Return the IOB2 tags of `count` words; chunks must not overlap."""
    tags = [OUTSIDE] * count
    for kind, start, end in chunks:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tuple(tags)


def may_follow(tag: str, before: str) -> bool:
    """Whether IOB2 allows `tag` after `before`: `I-` only continues a chunk of its own type."""
    return not tag.startswith("I-") or (before != OUTSIDE and before[2:] == tag[2:])


def _parts(tag: str) -> tuple[str, str]:
    tag = tag.strip()
    if tag == OUTSIDE or tag == OUTSIDE.lower():
        return OUTSIDE, ""
    if len(tag) > 2 and tag[1] in "-_" and tag[0].upper() in _KNOWN:
        return tag[0].upper(), tag[2:]
    raise ValueError(f"{tag!r} is not a tag; expected O, or B-, I-, E-, S-, L- or U- with a type")


def entity_types(labels: Sequence[str]) -> list[str]:
    """Return the entity types of a task's labels, in order; labels of a head are tags such as B-PER."""
    return list(
        dict.fromkeys(label[2:] if label[:2] in ("B-", "I-") else label for label in labels if label != OUTSIDE)
    )
