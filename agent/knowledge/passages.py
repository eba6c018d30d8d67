"""Turns ranked chunks into passages: drops near-duplicates and joins chunks that follow each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agent.knowledge.chunking import Chunk
from agent.knowledge.fusion import is_near_duplicate
from tools.context import Passage


def group_chunks(ranked: Iterable[Chunk], k: int, *, join: bool) -> list[list[Chunk]]:
    """Return the first k chunks in groups, without near-duplicates of a better chunk.

    Args:
        join: Group chunks that follow each other in a section, in document order. Otherwise each is its own group.
    """
    groups: list[list[Chunk]] = []
    for chunk in ranked:
        adjacent = next((group for group in groups if join and _is_adjacent(group, chunk)), None)
        if adjacent is not None:
            adjacent.append(chunk)
            adjacent.sort(key=lambda member: member.ordinal)
        elif not any(
            is_near_duplicate(chunk.embedded_text, other.embedded_text) for group in groups for other in group
        ):
            groups.append([chunk])
        if sum(map(len, groups)) == k:
            break
    return groups


def to_passage(group: Sequence[Chunk], cosines: Mapping[str, float]) -> Passage:
    """Join chunks of one section to a passage. Its score is the highest of their cosines."""
    return Passage(
        label=0,
        id="+".join(chunk.id for chunk in group),
        document=group[0].document,
        heading=group[0].heading,
        text="\n\n".join(chunk.text for chunk in group),
        score=max((cosines[chunk.id] for chunk in group if chunk.id in cosines), default=0.0),
    )


def _is_adjacent(group: Sequence[Chunk], chunk: Chunk) -> bool:
    """Return whether a chunk comes right before or after the group, under the same heading."""
    first, last = group[0], group[-1]
    is_same_section = (chunk.document, chunk.heading) == (first.document, first.heading)
    return is_same_section and chunk.ordinal in (first.ordinal - 1, last.ordinal + 1)
