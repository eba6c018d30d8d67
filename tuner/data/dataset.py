"""A dataset folder: train.jsonl, held_out.jsonl, manifest.json. Named by the hash of its rows, written once.

The held-out part is for early stopping; tasks of a suite must never be in either part. All rows of a task are in one
part, selected by a hash of its id, so a task stays there when rows are added. Tasks that an adapter was trained on are
never held out for its children.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.errors import DatasetError, RecordError
from agent.llm.prompt.json_grammar import canonical
from agent.records.run import step_from_dict, trajectory_from_dict
from tuner.data.curate import Curated, TrainingRow

DATASET_VERSION = 1

LEAST_HELD_OUT = 5
"""Fewest tasks that are held out; the loss of fewer says little about the training, so none are."""


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk, read back."""

    folder: Path
    hash: str
    train: tuple[TrainingRow, ...]
    held_out: tuple[TrainingRow, ...]
    manifest: Mapping[str, Any]


def write_dataset(
    curated: Curated,
    datasets: Path,
    *,
    validation_share: float,
    created_at: str,
    provenance: Mapping[str, Any],
    trained_on: Collection[str] = (),
) -> Dataset:
    """Write rows to `datasets/<hash>`; the same rows give the same folder.

    Args:
        curated: The rows, and what was left out.
        datasets: The folder of all datasets.
        validation_share: Of the tasks, held out.
        created_at: For the manifest.
        provenance: More entries of the manifest.
        trained_on: Tasks that are not held out, because the parent adapter was trained on them.

    Raises:
        DatasetError: There are no rows.
    """
    if not curated.rows and curated.held_back:
        counts = describe_held_back(curated.held_back_kinds)
        raise DatasetError(
            f"there is nothing to learn: the corrections are not trained ({counts}); "
            "see `ratchet corrections`, then `ratchet arbitrate CORRECTION habit`"
        )
    if not curated.rows:
        raise DatasetError(
            "no run was accepted or corrected yet, so there is nothing to learn from; "
            "see `ratchet log`, then `ratchet correct RUN STEP …` or `ratchet rate RUN up`"
        )
    parts = _split(curated.rows, validation_share, trained_on)
    lines = {name: [canonical(_row_to_dict(row)) for row in rows] for name, rows in parts.items()}
    digest = hashlib.sha256(canonical([DATASET_VERSION, lines]).encode()).hexdigest()
    folder = datasets / digest[:16]
    if not (folder / "manifest.json").is_file():
        manifest = {
            "version": DATASET_VERSION,
            "hash": digest,
            "created_at": created_at,
            "rows": {name: len(rows) for name, rows in parts.items()},
            "tasks": len({row.task for row in curated.rows}),
            "corrections": curated.corrections,
            "accepted_runs": curated.accepted,
            "reviewers": sorted({name for row in curated.rows for name in row.reviewers}),
            "left_out": dict(curated.left_out),
            "held_back": dict(curated.held_back),
            "held_back_kinds": dict(curated.held_back_kinds),
            **provenance,
        }
        _write(folder, lines, manifest)
    return read_dataset(folder)


def describe_held_back(kinds: Mapping[str, int]) -> str:
    """Return the counts of corrections that are not trained, in words."""
    return ", ".join(f"{count} {_KINDS[kind][count != 1]}" for kind, count in sorted(kinds.items()))


_KINDS = {
    "fact": ("knowledge gap", "knowledge gaps"),
    "exception": ("exception", "exceptions"),
    "superseded": ("superseded", "superseded"),
}


def read_dataset(folder: Path) -> Dataset:
    """Read a dataset folder and check it against its manifest. Raises DatasetError for a damaged one."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if manifest["version"] != DATASET_VERSION:
            raise DatasetError(
                f"{folder} has version {manifest['version']}, this code reads {DATASET_VERSION}; upgrade"
            )
        lines = {name: _lines(folder / f"{name}.jsonl") for name in ("train", "held_out")}
        digest = hashlib.sha256(canonical([DATASET_VERSION, lines]).encode()).hexdigest()
        if digest != manifest["hash"]:
            raise DatasetError(
                f"{folder} has changed since it was written (hash {digest[:12]}); delete it and tune again"
            )
        parts = {name: tuple(_row_from_dict(json.loads(line)) for line in part) for name, part in lines.items()}
    except (OSError, ValueError, KeyError, TypeError, RecordError) as error:
        raise DatasetError(f"{folder} is not a complete dataset ({error}); delete it and tune again") from error
    return Dataset(folder, digest, parts["train"], parts["held_out"], manifest)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; `splitlines` would also split at other characters, which texts may contain."""
    return path.read_text("utf-8").split("\n")[:-1]


def _split(rows: Sequence[TrainingRow], share: float, trained_on: Collection[str]) -> dict[str, list[TrainingRow]]:
    tasks = {row.task for row in rows} - set(trained_on)
    held_out = {task for task in tasks if _place(task) < share}
    if len(held_out) < LEAST_HELD_OUT:
        held_out = set()
    parts: dict[str, list[TrainingRow]] = {"train": [], "held_out": []}
    for row in rows:
        parts["held_out" if row.task in held_out else "train"].append(row)
    return parts


def _place(task: str) -> float:
    """Return a number in [0, 1) that depends on a task id only."""
    return int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big") / 2**64


def _write(folder: Path, lines: Mapping[str, Sequence[str]], manifest: Mapping[str, Any]) -> None:
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, rows in lines.items():
        _write_file(fresh / f"{name}.jsonl", "".join(f"{row}\n" for row in rows))
    # The manifest goes last: its presence means that the dataset is complete.
    _write_file(fresh / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _write_file(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _row_to_dict(row: TrainingRow) -> dict[str, Any]:
    data = asdict(row)
    data["targets"] = [{"index": index, "step": asdict(step)} for index, step in row.targets.items()]
    return data


def _row_from_dict(data: dict[str, Any]) -> TrainingRow:
    targets = {target["index"]: step_from_dict(target["step"]) for target in data["targets"]}
    return TrainingRow(
        data["run"],
        data["task"],
        data["kind"],
        trajectory_from_dict(data["trajectory"]),
        targets,
        tuple(data["reviewers"]),
    )
