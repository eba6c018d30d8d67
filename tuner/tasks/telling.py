"""What the commands of the classic tasks say: results on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.tasks.head.training import TaskProgress


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def result(data: Any) -> None:
    """A text as it is, anything else as JSON."""
    print(data if isinstance(data, str) else json.dumps(data, indent=1, ensure_ascii=False))


def show_progress(progress: TaskProgress) -> None:
    """Epochs, and every fiftieth step."""
    if progress.validation is not None:
        said = f"validation {progress.validation.main} {progress.validation.value:.4f}"
        note(f"epoch {progress.epoch + 1}, step {progress.step}/{progress.steps}: loss {progress.loss:.3f}, {said}")
    elif progress.step % 50 == 0:
        note(f"step {progress.step}/{progress.steps}: loss {progress.loss:.3f}")
