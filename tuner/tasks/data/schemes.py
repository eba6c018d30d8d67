"""Tags of words in any of the usual schemes become IOB2, and IOB2 becomes chunks.

Read are IOB1, IOB2, IO, BIOES (also with `E-` and `S-` called `L-` and `U-`: BILOU), `B_` in place of `B-`, and
spaces around a tag. A chunk that begins with `I-` is read as one that begins there, as conlleval does.
"""

from __future__ import annotations

from collections.abc import Sequence

OUTSIDE = "O"
_STARTS = frozenset("BSU")
_KNOWN = frozenset("BIESLUM")

Chunk = tuple[str, int, int]
"""Type, first word, word behind the last."""


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """The same chunks in IOB2. Raises ValueError, naming the tag, for what is in none of the schemes."""
    made: list[str] = []
    before_prefix, before_kind = OUTSIDE, ""
    for tag in tags:
        prefix, kind = _parts(tag)
        if prefix == OUTSIDE:
            made.append(OUTSIDE)
        else:
            goes_on = prefix not in _STARTS and kind == before_kind and before_prefix not in (OUTSIDE, *"ESLU")
            made.append(f"{'I' if goes_on else 'B'}-{kind}")
        before_prefix, before_kind = prefix, kind
    return tuple(made)


def chunks(tags: Sequence[str]) -> list[Chunk]:
    """The chunks of IOB2 tags, in order."""
    found: list[Chunk] = []
    for place, tag in enumerate(to_iob2(tags)):
        if tag.startswith("B-"):
            found.append((tag[2:], place, place + 1))
        elif tag.startswith("I-"):
            kind, start, _ = found.pop()
            found.append((kind, start, place + 1))
    return found


def from_chunks(found: Sequence[Chunk], count: int) -> tuple[str, ...]:
    """IOB2 tags of `count` words; chunks must not overlap."""
    tags = [OUTSIDE] * count
    for kind, start, end in found:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tuple(tags)


def may_follow(tag: str, before: str) -> bool:
    """Whether IOB2 allows `tag` behind `before`: a chunk goes on only where one of its type is."""
    return not tag.startswith("I-") or (before != OUTSIDE and before[2:] == tag[2:])


def _parts(tag: str) -> tuple[str, str]:
    tag = tag.strip()
    if tag == OUTSIDE or tag == OUTSIDE.lower():
        return OUTSIDE, ""
    if len(tag) > 2 and tag[1] in "-_" and tag[0].upper() in _KNOWN:
        return tag[0].upper(), tag[2:]
    raise ValueError(f"{tag!r} is no tag; expected O, or B-, I-, E-, S-, L- or U- with a type")


def kinds_of(labels: Sequence[str]) -> list[str]:
    """The types of a task's labels, in their order: a head's are tags such as B-PER, a language model's the types."""
    return list(dict.fromkeys(one[2:] if one[:2] in ("B-", "I-") else one for one in labels if one != OUTSIDE))
