"""`metrics.jsonl` of a tuning: the settings, then a line for each optimizer step and each evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.config.settings import TuningSettings
from agent.util.atomic_files import write_whole


class MetricsLog:
    """Appends lines of JSON during a training; without a path nothing is written."""

    def __init__(self, path: Path | None, settings: TuningSettings, steps: int) -> None:
        self._path = path
        self._head = {"settings": asdict(settings), "steps": steps}

    def begin(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._write(self._head)

    def rewind(self, step: int, epoch: int) -> None:
        """Drop the lines after a checkpoint from which training continues.

        A process that is killed here leaves the old lines or the new ones.
        """
        if self._path is None or not self._path.is_file():
            return
        rows = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # Cut short when the process ended.
        remaining = [
            row for row in rows if row.get("step", 0) <= step and ("loss" in row or row.get("epoch", -1) < epoch)
        ]
        write_whole(self._path, "".join(json.dumps(row) + "\n" for row in remaining))

    def step(self, row: Mapping[str, Any]) -> None:
        self._write(row)

    def epoch(self, step: int, epoch: int, held_out_loss: float | None) -> None:
        """Log the evaluation at the end of an epoch; None where nothing is held out."""
        if held_out_loss is not None:
            self._write({"step": step, "epoch": epoch, "held_out_loss": held_out_loss})

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
