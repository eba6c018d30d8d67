"""The dataset for tuning the sentence encoder, kept in a folder of its own.

It holds relevance judgements (queries with passages that fit them) and tasks labelled with their first call. A hash
decides the part of each, so that what is held out stays held out as feedback grows.
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
"""Of the folder's format. Version 1 has no tasks."""


@dataclass(frozen=True)
class RelevanceJudgement:
    """A query with the ids of passages that fit it and of passages that do not."""

    query: str
    positives: tuple[str, ...]
    """From approved answers."""
    negatives: tuple[str, ...]
    """The hardest first."""
    part: Part


@dataclass(frozen=True)
class FirstCallTask:
    """A task with the first call that its run should make."""

    text: str
    """Normalised as recall compares it, see `agent.text.normalise.normalise_task`."""
    label: str
    """The first call with the values it chose; equal for tasks with the same first call."""
    name: str
    """The chosen values in words; empty where there are none."""
    part: Part


@dataclass(frozen=True)
class EncoderDataset:
    """What the encoder is trained on and measured with."""

    judgements: tuple[RelevanceJudgement, ...]
    passages: Mapping[str, Chunk]
    """The judged passages by id. One that the documents no longer hold is kept as the record or the file has it."""
    hash: str
    """SHA-256 of judgements, passages and tasks."""
    tasks: tuple[FirstCallTask, ...] = ()

    def judgements_in(self, part: Part) -> tuple[RelevanceJudgement, ...]:
        return tuple(judgement for judgement in self.judgements if judgement.part == part)

    def tasks_in(self, part: Part) -> tuple[FirstCallTask, ...]:
        return tuple(task for task in self.tasks if task.part == part)


def make_dataset(
    judgements: Sequence[RelevanceJudgement], passages: Mapping[str, Chunk], tasks: Sequence[FirstCallTask] = ()
) -> EncoderDataset:
    """Return a dataset with its hash."""
    return EncoderDataset(tuple(judgements), passages, _hash(judgements, passages, tasks), tuple(tasks))


def part_of_group(group: str, *, held_out: float, validation: float) -> Part:
    """Return the part that everything of a group belongs to, by the hash of its name.

    Args:
        group: the name, such as a task's text.
        held_out: share of all groups that is held out, 0 to 1.
        validation: share of all groups for validation, 0 to 1.
    """
    share = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
    if share < held_out:
        return "held_out"
    return "validation" if share < held_out + validation else "train"


def fold_text(text: str) -> str:
    """Return the text without differences of case and spaces."""
    return " ".join(text.split()).casefold()


def write_encoder_dataset(dataset: EncoderDataset, datasets: Path, *, created_at: str) -> Path:
    """Write a dataset as the folder `encoder-<hash>` of `datasets`, unless it exists already. Return the folder."""
    folder = datasets / f"encoder-{dataset.hash[:16]}"
    if (folder / "manifest.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "queries.jsonl", _lines(asdict(judgement) for judgement in dataset.judgements))
    write_whole(folder / "passages.jsonl", _lines(asdict(chunk) for chunk in dataset.passages.values()))
    write_whole(folder / "tasks.jsonl", _lines(asdict(task) for task in dataset.tasks))
    manifest = {
        "version": VERSION,
        "hash": dataset.hash,
        "created_at": created_at,
        "queries": {part: len(dataset.judgements_in(part)) for part in PARTS},
        "tasks": {part: len(dataset.tasks_in(part)) for part in PARTS},
    }
    # The manifest goes last: its presence tells a reader that the dataset is whole.
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=1))
    return folder


def read_encoder_dataset(folder: Path) -> EncoderDataset:
    """Read a dataset folder of version 1 or 2.

    Raises:
        DatasetError: a file is missing or damaged, or the hash differs.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] not in (1, VERSION):
            raise ValueError(f"version {manifest['version']}, this code reads 1 and {VERSION}")
        judgements = tuple(
            RelevanceJudgement(**{**row, "positives": tuple(row["positives"]), "negatives": tuple(row["negatives"])})
            for row in _rows(folder / "queries.jsonl")
        )
        passages = {row["id"]: Chunk(**row) for row in _rows(folder / "passages.jsonl")}
        rows = _rows(folder / "tasks.jsonl") if manifest["version"] > 1 else []
        dataset = make_dataset(judgements, passages, tuple(FirstCallTask(**row) for row in rows))
        if dataset.hash != manifest["hash"]:
            raise ValueError("its hash differs")
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DatasetError(f"dataset {folder} cannot be read ({fault}); tune the encoder again") from fault
    return dataset


def _hash(
    judgements: Sequence[RelevanceJudgement], passages: Mapping[str, Chunk], tasks: Sequence[FirstCallTask]
) -> str:
    digest = hashlib.sha256(_lines(asdict(judgement) for judgement in judgements).encode())
    digest.update(_lines(asdict(passages[id]) for id in sorted(passages)).encode())
    # Without tasks this is the hash of version 1.
    digest.update(_lines(asdict(task) for task in tasks).encode())
    return digest.hexdigest()


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    # Not `splitlines`: a text may contain other line separators, which JSON leaves as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
