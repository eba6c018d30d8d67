"""Writes what a benchmark measured to `docs/results/<name>.json`, with where, when and how.

No path and no host name of the machine goes in. A figure that could not be measured is null, never left out.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PEERS = ROOT / ".ratchet" / "bench-peers"


def write_result(
    name: str,
    command: str,
    metrics: Mapping[str, float | None],
    rows: Sequence[Mapping[str, Any]],
    *,
    folder: Path = RESULTS,
) -> Path:
    """Write one benchmark's result, beside and renamed; `command` is what makes the figures again."""
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"result name {name!r}; expected lower-case letters, digits and '_'")
    for key, value in metrics.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"metric {key} is {value}; expected a finite number, or None when not measured")
    data = {
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "command": command,
        "metrics": dict(metrics),
        "rows": [dict(row) for row in rows],
    }
    text = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False)
    text = text.replace(str(ROOT), ".").replace(str(Path.home()), "~")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a result as they were written last; none where there is none."""
    path = RESULTS / f"{name}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else []


def replaced(
    rows: Iterable[Mapping[str, Any]], made: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], object]
) -> list[dict[str, Any]]:
    """The rows with those made in place of the ones with the same key, behind the others."""
    fresh = [dict(row) for row in made]
    keys = {key(row) for row in fresh}
    return [*(dict(row) for row in rows if key(row) not in keys), *fresh]


def beside_peers() -> dict[str, str]:
    """The environment of a process that may import the peers: behind our own packages, which none stands in for."""
    parts = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), str(PEERS)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(parts)}


def commit(root: Path = ROOT) -> str:
    """The checked-out commit, with `-dirty` when files other than results differ from it."""
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return "unknown"
    # Results are what benchmarks write: one must not make the next one's commit dirty.
    changed = _git(root, "status", "--porcelain", "--", ".", ":(exclude)docs/results")
    return head if changed == "" else f"{head}-dirty"


def machine() -> dict[str, Any]:
    """Cores, memory, processor and the versions that decide speed."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "cpu": _cpu(),
        "torch": torch,
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
