"""Checkpoints of a training, written atomically.

A checkpoint is a folder `step-000012` with `state.safetensors` and, written last, `checkpoint.json`: the counters and
the SHA-256 of the tensors. The newest complete one is read; the two newest are kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import TuningError
from agent.llm.weights.checksums import sha256_file
from agent.util.atomic_files import sync

if TYPE_CHECKING:
    import torch

_PREFIX = "step-"
_STAGED = ".staged"
_TENSORS = "state.safetensors"
_COUNTERS = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """The saved state of a training."""

    tensors: Mapping[str, torch.Tensor]
    counters: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], counters: Mapping[str, Any]) -> None:
        """Write a checkpoint and delete all others but the previous one.

        Raises:
            TuningError: It cannot be written. Nothing of it is left, and the previous one stays.
        """
        from safetensors.torch import save_file

        staged = self._folder / _STAGED
        target = self._folder / f"{_PREFIX}{step:06d}"
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staged / _TENSORS)
            summary = {"counters": dict(counters), "sha256": sha256_file(staged / _TENSORS)}
            (staged / _COUNTERS).write_text(json.dumps(summary), encoding="utf-8")
            for path in (staged / _TENSORS, staged / _COUNTERS, staged):
                sync(path)
            shutil.rmtree(target, ignore_errors=True)
            staged.rename(target)
            sync(self._folder)
        except Exception as error:
            # safetensors raises an error of its own for system errors.
            shutil.rmtree(staged, ignore_errors=True)
            raise TuningError(
                f"the checkpoint of step {step} could not be written to {self._folder} ({error}); make room, and "
                "continue with `ratchet tune --resume`"
            ) from error
        for older in self._all()[:-2]:
            shutil.rmtree(older, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint; damaged ones are skipped."""
        from safetensors.torch import load_file

        for folder in reversed(self._all()):
            try:
                summary = json.loads((folder / _COUNTERS).read_text(encoding="utf-8"))
                if summary["sha256"] == sha256_file(folder / _TENSORS):
                    return Checkpoint(load_file(folder / _TENSORS), summary["counters"])
            except (OSError, ValueError, KeyError):
                continue
        return None

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*"))
