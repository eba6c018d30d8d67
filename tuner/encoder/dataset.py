"""What the sentence encoder is to learn, and what it will be measured with: kept in a dataset folder of its own.

There are two kinds: queries with passages that fit them, and tasks with how their runs began. A hash says which part
each is in: what is held out stays held out, however much feedback comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from agent.errors import DatasetError
from agent.knowledge.chunking import Chunk
from agent.util.atomic_files import write_whole

Part = Literal["train", "validation", "held_out"]

PARTS: tuple[Part, ...] = ("held_out", "validation", "train")

VERSION = 2
"""Of the folder. One of version 1 has no tasks."""


@dataclass(frozen=True)
class Judged:
    """A query, and ids of passages."""

    query: str
    positives: tuple[str, ...]
    """People stand behind these."""
    negatives: tuple[str, ...]
    """The hardest first."""
    part: Part


@dataclass(frozen=True)
class LabelledTask:
    """A task, and how people would have its run begin."""

    text: str
    """As recall compares it, see `agent.text.normalise.plain`."""
    label: str
    """The first call with what it chose; equal for tasks that began alike."""
    name: str
    """What was chosen, in words; empty where nothing was."""
    part: Part


@dataclass(frozen=True)
class Lessons:
    """What is to be learnt, and what it will be measured with."""

    judged: tuple[Judged, ...]
    passages: Mapping[str, Chunk]
    """Those that are named, by id; what the documents no longer hold is as the record or the file has it."""
    hash: str
    """Of all of that and of the tasks."""
    tasks: tuple[LabelledTask, ...] = ()

    def of(self, part: Part) -> tuple[Judged, ...]:
        return tuple(one for one in self.judged if one.part == part)

    def tasks_of(self, part: Part) -> tuple[LabelledTask, ...]:
        return tuple(one for one in self.tasks if one.part == part)


def make_lessons(
    judged: Sequence[Judged], passages: Mapping[str, Chunk], tasks: Sequence[LabelledTask] = ()
) -> Lessons:
    """Lessons with their hash."""
    return Lessons(tuple(judged), passages, _hash(judged, passages, tasks), tuple(tasks))


def part_of(group: str, *, held_out: float, validation: float) -> Part:
    """The part that everything of a group is in; the same one always. The shares are of all groups, 0 to 1."""
    share = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
    if share < held_out:
        return "held_out"
    return "validation" if share < held_out + validation else "train"


def folded(text: str) -> str:
    """Equal for texts that are the same but for case and spaces."""
    return " ".join(text.split()).casefold()


def write_lessons(lessons: Lessons, datasets: Path, *, created_at: str) -> Path:
    """Keep lessons as `encoder-<hash>`; the same ones are written once."""
    folder = datasets / f"encoder-{lessons.hash[:16]}"
    if (folder / "manifest.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "queries.jsonl", _lines(asdict(one) for one in lessons.judged))
    write_whole(folder / "passages.jsonl", _lines(asdict(one) for one in lessons.passages.values()))
    write_whole(folder / "tasks.jsonl", _lines(asdict(one) for one in lessons.tasks))
    manifest = {
        "version": VERSION,
        "hash": lessons.hash,
        "created_at": created_at,
        "queries": {part: len(lessons.of(part)) for part in PARTS},
        "tasks": {part: len(lessons.tasks_of(part)) for part in PARTS},
    }
    # The manifest goes last: its presence tells a reader that the dataset is whole.
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=1))
    return folder


def read_lessons(folder: Path) -> Lessons:
    """What `write_lessons` wrote, in version 1 too. Raises DatasetError where it is broken."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] not in (1, VERSION):
            raise ValueError(f"version {manifest['version']}, this code reads 1 and {VERSION}")
        judged = tuple(
            Judged(**{**row, "positives": tuple(row["positives"]), "negatives": tuple(row["negatives"])})
            for row in _rows(folder / "queries.jsonl")
        )
        passages = {row["id"]: Chunk(**row) for row in _rows(folder / "passages.jsonl")}
        rows = _rows(folder / "tasks.jsonl") if manifest["version"] > 1 else []
        lessons = make_lessons(judged, passages, tuple(LabelledTask(**row) for row in rows))
        if lessons.hash != manifest["hash"]:
            raise ValueError("its hash differs")
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DatasetError(f"dataset {folder} cannot be read ({fault}); tune the encoder again") from fault
    return lessons


def _hash(judged: Sequence[Judged], passages: Mapping[str, Chunk], tasks: Sequence[LabelledTask]) -> str:
    digest = hashlib.sha256(_lines(asdict(one) for one in judged).encode())
    digest.update(_lines(asdict(passages[id]) for id in sorted(passages)).encode())
    # Without tasks it is the hash of version 1.
    digest.update(_lines(asdict(one) for one in tasks).encode())
    return digest.hexdigest()


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    # Not `splitlines`: a text may hold other ends of lines, which JSON leaves as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
