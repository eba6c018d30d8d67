"""The chunks that a search found become the passages that are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agent.knowledge.chunking import Chunk
from agent.knowledge.fusion import alike
from tools.context import Passage


def gathered(ranked: Iterable[Chunk], k: int, *, join: bool) -> list[list[Chunk]]:
    """The first k chunks, what says the same as a better one left out.

    With `join` those that follow each other in a section are together, in their order.
    """
    found: list[list[Chunk]] = []
    for chunk in ranked:
        beside = next((group for group in found if join and _adjoins(group, chunk)), None)
        if beside is not None:
            beside.append(chunk)
            beside.sort(key=lambda one: one.ordinal)
        elif not any(alike(chunk.embedded_text, one.embedded_text) for group in found for one in group):
            found.append([chunk])
        if sum(map(len, found)) == k:
            break
    return found


def passage(group: Sequence[Chunk], cosines: Mapping[str, float]) -> Passage:
    """Chunks of one section as one passage; its score is the highest of their cosines."""
    return Passage(
        label=0,
        id="+".join(chunk.id for chunk in group),
        document=group[0].document,
        heading=group[0].heading,
        text="\n\n".join(chunk.text for chunk in group),
        score=max((cosines[chunk.id] for chunk in group if chunk.id in cosines), default=0.0),
    )


def _adjoins(group: Sequence[Chunk], chunk: Chunk) -> bool:
    """Whether a chunk comes just before or behind these, under the same heading."""
    first, last = group[0], group[-1]
    here = (chunk.document, chunk.heading) == (first.document, first.heading)
    return here and chunk.ordinal in (first.ordinal - 1, last.ordinal + 1)
