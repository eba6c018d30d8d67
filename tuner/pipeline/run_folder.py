"""The folder of a tuning, `tunings/<id>`: what it was started with, so that it can be continued, and a lock."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import TuningError
from agent.util.atomic_files import alone, write_whole

_START = "tuning.json"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TuningStart:
    """What a tuning was started with."""

    id: str
    dataset: str
    """Name of its folder."""
    parent: str | None
    """Id of the adapter that training starts from; None is the base."""
    prompt_version: str
    base_revision: str
    created_at: str


def begin(tunings: Path, start: TuningStart) -> Path:
    """Make the folder of a new tuning and record what it was started with."""
    folder = tunings / start.id
    checkpoints_of(folder).mkdir(parents=True)
    write_whole(folder / _START, json.dumps(asdict(start), indent=1))
    return folder


def latest_unfinished(tunings: Path, wanted: str) -> TuningStart:
    """Return the unfinished tuning of an id, or with "" the newest. Raises TuningError where there is none."""
    folders = sorted(path.parent for path in tunings.glob(f"*/{_START}") if checkpoints_of(path.parent).is_dir())
    matching = [folder for folder in folders if wanted in ("", folder.name)]
    if not matching:
        raise TuningError(
            f"no tuning {wanted or 'at all'} can be continued; unfinished are "
            f"{', '.join(folder.name for folder in folders) or 'none'}. `ratchet tune` begins a new one"
        )
    try:
        return TuningStart(**json.loads((matching[-1] / _START).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TuningError(
            f"{matching[-1] / _START} cannot be read ({error}); begin a new one with `ratchet tune`"
        ) from error


def dataset_of(folder: Path) -> str | None:
    """Return the name of the dataset that a tuning was started with; None where that cannot be read."""
    try:
        return str(json.loads((folder / _START).read_text(encoding="utf-8"))["dataset"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def checkpoints_of(folder: Path) -> Path:
    """Return the folder of a tuning's checkpoints, which exists until it is finished."""
    return folder / _CHECKPOINTS


def finish(folder: Path) -> None:
    """Delete the checkpoints of a finished tuning."""
    shutil.rmtree(checkpoints_of(folder))


@contextmanager
def one_at_a_time(tunings: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process tunes in this home; two at once take far longer than one after the other."""
    tunings.mkdir(parents=True, exist_ok=True)
    with alone(tunings / ".lock", say, "another tuning is running"):
        yield
