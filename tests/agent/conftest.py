"""A home and a folder of documents to add to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.encoders.encoder import Encoder, HashEncoder
from agent.knowledge.knowledge import Knowledge

OpenKnowledge = Callable[..., Knowledge]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "help"
    folder.mkdir()
    (folder / "returns.md").write_text(
        "# Returns\n\nSend a tent back within thirty days.\n\n## Refunds\n\nMoney arrives after five days.\n"
    )
    (folder / "shipping.md").write_text("# Shipping\n\nParcels leave the warehouse every morning.\n")
    (folder / "stoves.txt").write_text("Gas stoves are filled outside and never near a flame.\n")
    return folder


@pytest.fixture
def open_memory(tmp_path: Path) -> Iterator[OpenKnowledge]:
    """Opens memories of one home; all are closed after the test."""
    opened: list[Knowledge] = []

    def open_one(encoder: Encoder | None = None, **options: Any) -> Knowledge:
        home = tmp_path / "home"
        encoder = encoder or HashEncoder()
        memory = Knowledge.open(home / "ratchet.db", home / "index", encoder, **options)
        opened.append(memory)
        return memory

    yield open_one
    for memory in opened:
        memory.close()
