"""Integrity of weight files: sizes, hashes and safetensors headers, read without torch.

The checks find damage and mix-ups. Only the hashes pinned in `catalog` protect against someone who rewrites a folder
together with its manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from agent.errors import WeightsError

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Suffixes of weight files that run code when they are loaded; they are never opened."""

MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex; about 1 GB/s where the processor has SHA instructions."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, *, size: int, sha256: str | None, remedy: str) -> None:
    """Raise WeightsError, ending in `remedy`, unless the file has this size and, if given, this hash."""
    if not path.is_file():
        raise WeightsError(f"{path} is missing; {remedy}")
    actual = path.stat().st_size
    if actual != size:
        raise WeightsError(f"{path} has {actual:,} bytes, {size:,} expected; {remedy}")
    if sha256 is not None and (digest := sha256_file(path)) != sha256:
        raise WeightsError(f"{path} has SHA-256 {digest[:12]}…, {sha256[:12]}… expected; {remedy}")


def check_safetensors(path: Path, *, remedy: str) -> None:
    """Raise WeightsError unless the header is valid and matches the size of the file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ValueError(f"header length {length:,}")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}); {remedy}") from None
    if size != expected:
        raise WeightsError(f"{path} has {size:,} bytes, its header requires {expected:,}; {remedy}")


def weight_files(folder: Path, *, remedy: str) -> tuple[Path, ...]:
    """Check the safetensors files of a folder and return them by name. Raises WeightsError where one is bad."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
        if pickles:
            raise WeightsError(
                f"{folder} has only pickled weights ({', '.join(pickles[:3])}), which run code when read; "
                "safetensors expected: fetch that version of the model, or save it again with safetensors"
            )
        raise WeightsError(f"{folder} has no *.safetensors file; {remedy}")
    for name in _read_index(folder, remedy):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name} is missing, the index names it; {remedy}")
    for path in files:
        check_safetensors(path, remedy=remedy)
    return tuple(files)


def combined_hash(hashes: Iterable[tuple[str, str]]) -> str:
    """Combine the hashes of several files to one; a single file keeps its own."""
    lines = sorted(hashes)
    if len(lines) == 1:
        return lines[0][1]
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in lines).encode()).hexdigest()


def _read_index(folder: Path, remedy: str) -> set[str]:
    """Return the files that the folder's index names; empty without an index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        names = {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} cannot be read ({error}); {remedy}") from None
    if any(Path(name).name != name for name in names):
        raise WeightsError(f"{index} names files outside its folder; {remedy}")
    return names
