"""Two processes that write to one memory and are killed, again and again; after each round all must be whole."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.encoders.encoder import HashEncoder
from agent.errors import RatchetError
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.knowledge import Knowledge

DOCUMENTS = 60


def kills(rounds: int) -> dict[str, Any]:
    """How many rounds were survived, of how many; stops at the first loss, and says what was lost."""
    draws = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        found = {"rounds": rounds, "survived": 0, "changes": 0, "lost": None}
        for number in range(rounds):
            writers = [
                subprocess.Popen(
                    [sys.executable, "-m", "tests.bench.retrieval_kills", str(home), name, str(number)],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for name in ("one", "two")
            ]
            for writer in writers:
                assert writer.stdout is not None
                writer.stdout.readline()
            time.sleep(draws.uniform(0.2, 4.0))
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
            said = [writer.communicate()[0].split() for writer in writers]
            lost = _lost(home, said)
            if lost:
                found["lost"] = lost
                return found
            found["survived"] += 1
            found["changes"] += sum(map(len, said))
    return found


def _lost(home: Path, said: list[list[str]]) -> str | None:
    """What is not as the writers said it was, in words; `said` are the versions that each was done with."""
    with sqlite3.connect(home / "ratchet.db") as connection:
        (whole,) = connection.execute("PRAGMA integrity_check").fetchone()
        if whole != "ok":
            return f"the database: {whole}"
    memory = Knowledge.open(home / "ratchet.db", home / "index", HashEncoder())
    try:
        shelf: DocumentStore = memory.store
        for name, versions in zip(("one", "two"), said, strict=True):
            texts = shelf.texts([document.name for document in memory.documents() if document.name.startswith(name)])
            newest = {int(text.rsplit("version", 1)[1]) for text in texts.values()}
            if versions and (len(texts) != DOCUMENTS or min(newest) < int(versions[-1])):
                return f"{name} was done with version {versions[-1]}, found {len(texts)} documents of {sorted(newest)}"
        state = shelf.state()
        indexed = len(memory.search("one7 word", 500))
        if indexed != min(500, state.chunks) and state.chunks:
            return f"the index finds {indexed} of {state.chunks} passages"
        for name in ("one", "two"):
            (best, *_) = memory.search(f"{name}7 number7", 1) or [None]
            if best is not None and state.chunks == 2 * DOCUMENTS and f"{name}7 " not in best.text:
                return f"{name}7 is not found"
    except RatchetError as fault:
        return str(fault)
    finally:
        memory.close()
    return None


def _write(home: Path, name: str, number: int) -> None:
    """Change all documents of a folder, say so, and begin again until killed."""
    folder = home / name
    folder.mkdir(exist_ok=True)
    memory = Knowledge.open(home / "ratchet.db", home / "index", HashEncoder())
    print("ready", flush=True)
    for turn in range(1_000_000):
        version = number * 1_000_000 + turn
        for place in range(DOCUMENTS):
            path = folder / f"{name}{place}.txt"
            beside = path.with_suffix(".tmp")
            beside.write_text(f"{name}{place} number{place} word version{version}", encoding="utf-8")
            beside.replace(path)
        try:
            memory.add_folder(folder)
        except RatchetError as fault:
            if "locked by PID" not in str(fault):
                raise
            continue
        print(version, flush=True)


if __name__ == "__main__":
    _write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
