"""The folder of a tuning, `tunings/<id>`: what it was begun with, so that it can be gone on with, and one at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import TuningError
from agent.util.atomic_files import alone, write_whole

_BEGUN = "tuning.json"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Begun:
    """A tuning that was begun."""

    id: str
    dataset: str
    """Name of its folder."""
    parent: str | None
    """Id of the adapter it starts from; None: from the base."""
    prompt_version: str
    base_revision: str
    created_at: str


def begin(tunings: Path, begun: Begun) -> Path:
    """Make the folder of a new tuning and write down what it was begun with."""
    folder = tunings / begun.id
    checkpoints(folder).mkdir(parents=True)
    write_whole(folder / _BEGUN, json.dumps(asdict(begun), indent=1))
    return folder


def unfinished(tunings: Path, wanted: str) -> Begun:
    """The tuning of this id, or with "" the newest that was not finished. Raises TuningError where there is none."""
    found = sorted(path.parent for path in tunings.glob(f"*/{_BEGUN}") if checkpoints(path.parent).is_dir())
    chosen = [folder for folder in found if wanted in ("", folder.name)]
    if not chosen:
        raise TuningError(
            f"no tuning {wanted or 'at all'} can be gone on with; unfinished are "
            f"{', '.join(folder.name for folder in found) or 'none'}. A new one is begun by `ratchet tune`"
        )
    try:
        return Begun(**json.loads((chosen[-1] / _BEGUN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as fault:
        raise TuningError(
            f"{chosen[-1] / _BEGUN} cannot be read ({fault}); begin a new one by `ratchet tune`"
        ) from fault


def dataset_of(folder: Path) -> str | None:
    """The name of the dataset that a tuning was begun with; None where that cannot be read."""
    try:
        return str(json.loads((folder / _BEGUN).read_text(encoding="utf-8"))["dataset"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def checkpoints(folder: Path) -> Path:
    """Where a tuning keeps its checkpoints until it is finished."""
    return folder / _CHECKPOINTS


def finish(folder: Path) -> None:
    """Drop what is only needed to go on."""
    shutil.rmtree(checkpoints(folder))


@contextmanager
def one_at_a_time(tunings: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process tunes in this home; two at once would take far longer than one after the other."""
    tunings.mkdir(parents=True, exist_ok=True)
    with alone(tunings / ".lock", say, "another tuning is running"):
        yield
