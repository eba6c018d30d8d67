"""Sealed adapter folders: the files they may contain, and the manifest with the hashes of the files.

A folder with a manifest is complete, because the manifest is written last; it is safe when it contains nothing but
plain PEFT weights, JSON and a report. Imports no torch. Does not protect from someone who may write to the folder and
seal it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from agent.errors import AdapterError
from agent.util.atomic_files import write_whole

MANIFEST_VERSION = 1
LORA, VIRTUAL, FULL = "LORA", ("PROMPT_TUNING", "PREFIX_TUNING"), "LN_TUNING"
"""The kinds of adapters that are served, as PEFT names them. LN_TUNING replaces whole modules of the base, which is how
the result of full fine-tuning is stored."""
CONFIG, WEIGHTS, MANIFEST, TASK, CARD, REPORT = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "task.json",
    "README.md",
    "report",
)
"""`task.json` is in folders of classic tasks only, and describes the head."""
REPORT_SUFFIXES = (".json", ".md", ".html", ".png", ".svg")
"""Allowed in `report/`; these files are for people and never loaded."""


@dataclass(frozen=True)
class Manifest:
    """The content of a sealed folder and its origin."""

    id: str
    base: str
    base_revision: str
    dataset_hash: str
    parent: str | None
    """The adapter that training started from; None for the bare base."""
    tuning: str
    """Id of the tuning that trained it."""
    created_at: str
    code_version: str
    tensors_sha256: str
    """`tensors_hash` of the weights; what the runtime serves must give the same."""
    files: Mapping[str, str]
    """Path inside the folder to SHA-256, the manifest itself left out."""
    merged: Mapping[str, float] = field(default_factory=dict)
    """Ids and weights of the adapters that it is the sum of; empty for a trained adapter."""
    version: int = MANIFEST_VERSION


def seal(
    folder: Path,
    *,
    id: str,
    base: str,
    base_revision: str,
    dataset_hash: str,
    parent: str | None,
    tuning: str,
    created_at: str,
    code_version: str,
    merged: Mapping[str, float] | None = None,
) -> Manifest:
    """Check an adapter folder and write its manifest last. Raises AdapterError for an unsafe folder."""
    files = _list_files(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise AdapterError(f"{folder} has no {name}; an adapter folder needs {CONFIG} and {WEIGHTS}")
    _check_config(folder / CONFIG)
    manifest = Manifest(
        id=id,
        base=base,
        base_revision=base_revision,
        dataset_hash=dataset_hash,
        parent=parent,
        tuning=tuning,
        created_at=created_at,
        code_version=code_version,
        tensors_sha256=tensors_hash(folder / WEIGHTS),
        files={name: _sha256(folder / name, sync=True) for name in files if name != MANIFEST},
        merged=dict(merged or {}),
    )
    _write_manifest(folder, manifest)
    return manifest


def add_documents(folder: Path, documents: Mapping[str, bytes]) -> Manifest:
    """Add report files or a new model card to a sealed folder, which verifies at every moment.

    For one writer at a time.
    """
    for name in documents:
        _check_name(folder, name)
        if not _is_document(name):
            raise AdapterError(f"{name} cannot be added to sealed adapter {folder}; only {CARD} and {REPORT}/ can")
    manifest = verify(folder)
    kept = {name: digest for name, digest in manifest.files.items() if name not in documents}
    _write_manifest(folder, replace(manifest, files=kept))
    for name, content in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_whole(folder / name, content, _scratch(folder))
    new = {name: hashlib.sha256(content).hexdigest() for name, content in documents.items()}
    manifest = replace(manifest, files={**kept, **new})
    _write_manifest(folder, manifest)
    return manifest


def remove_documents(folder: Path, names: Sequence[str]) -> Manifest:
    """Remove report files or the model card from a sealed folder, which verifies at every moment.

    For one writer at a time.
    """
    for name in names:
        if not _is_document(name):
            raise AdapterError(f"{name} cannot be taken out of sealed adapter {folder}; only {CARD} and {REPORT}/ can")
    manifest = verify(folder)
    left = replace(manifest, files={name: digest for name, digest in manifest.files.items() if name not in names})
    _write_manifest(folder, left)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return left


def verify(folder: Path) -> Manifest:
    """Return the manifest of a complete and safe folder. Raises AdapterError, naming the file, for any other.

    Weights, configuration and every other file of the manifest must have the hashes in it. A model card or report may
    be missing in the manifest: it is for people and never loaded.
    """
    files = _list_files(folder)
    manifest = _read_manifest(folder, files)
    for name in (CONFIG, WEIGHTS, *([TASK] if TASK in files else [])):
        if name not in manifest.files:
            raise AdapterError(f"the manifest of {folder} does not name {name}; train the adapter again")
    for name, digest in manifest.files.items():
        if name not in files:
            raise AdapterError(f"{folder} lacks {name}, which its manifest names; copy the folder again")
        if _sha256(folder / name) != digest:
            raise AdapterError(f"{folder / name} is not what was sealed (its SHA-256 differs); copy it again")
    _check_config(folder / CONFIG)
    if tensors_hash(folder / WEIGHTS) != manifest.tensors_sha256:
        raise AdapterError(f"the tensors of {folder} are not those its manifest names; copy the folder again")
    return manifest


def hash_tensors(tensors: Iterable[tuple[str, str, Sequence[int], bytes | memoryview]]) -> str:
    """SHA-256, in hex, over tensors given as (name, dtype, shape, bytes); their order does not matter.

    Hashed is, with every number an unsigned 64-bit little-endian integer:

        b"ratchet-tensors-1\\n", then for each tensor, by name in the order of its UTF-8 bytes:
        length of the name, the name in UTF-8, length of the dtype, the dtype as safetensors spells it
        ("F32", "BF16", "F16", ...), number of dimensions, each dimension, number of bytes,
        the elements, little-endian, row-major, contiguous.

    From a live torch tensor `t` on a little-endian machine the bytes are
    `t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()`.
    """
    digest = hashlib.sha256(b"ratchet-tensors-1\n")
    for name, dtype, shape, data in sorted(tensors, key=lambda tensor: tensor[0].encode()):
        for label in (name.encode(), dtype.encode()):
            digest.update(struct.pack("<Q", len(label)) + label)
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        digest.update(struct.pack(f"<Q{len(shape)}QQ", len(shape), *shape, size))
        digest.update(data)
    return digest.hexdigest()


def tensors_hash(path: Path) -> str:
    """`hash_tensors` of a safetensors file. Metadata and the order in the file do not count.

    Raises AdapterError unless the header is sound and the tensors fill the rest of the file without a gap.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            entries, start = _read_header(file, size, path)
            return hash_tensors(_read_tensors(file, entries, start))
    except OSError as fault:
        raise AdapterError(f"{path} cannot be read ({fault.strerror})") from fault


def _list_files(folder: Path) -> list[str]:
    """Paths of the files in the folder. Raises AdapterError, by name, for any that may not be there."""
    if folder.is_symlink() or not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder; expected an adapter folder with {MANIFEST}")
    names = []
    for path in sorted(folder.iterdir()):
        if path.name == REPORT and stat.S_ISDIR(path.lstat().st_mode):
            names += [f"{REPORT}/{inner.name}" for inner in sorted(path.iterdir())]
        else:
            names.append(path.name)
    for name in names:
        _check_name(folder, name)
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise AdapterError(f"{folder / name} is not a plain file; links and folders are refused in an adapter")
    return names


def _check_name(folder: Path, name: str) -> None:
    if name in (CONFIG, WEIGHTS, MANIFEST, TASK) or _is_document(name):
        return
    raise AdapterError(
        f"{folder / name} may not be in an adapter; allowed are {CONFIG}, {WEIGHTS}, {MANIFEST}, {TASK}, {CARD} "
        f"and {REPORT}/ with {' '.join(REPORT_SUFFIXES)}; remove it if you trust the rest"
    )


def _is_document(name: str) -> bool:
    parts = name.split("/")
    return name == CARD or (
        len(parts) == 2 and parts[0] == REPORT and not parts[1].startswith(".") and Path(name).suffix in REPORT_SUFFIXES
    )


def _read_manifest(folder: Path, files: Sequence[str]) -> Manifest:
    if MANIFEST not in files:
        raise AdapterError(f"{folder} has no {MANIFEST}: it was never finished; train the adapter again")
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
        if data["version"] != MANIFEST_VERSION:
            raise AdapterError(
                f"{folder / MANIFEST} has version {data['version']}, this code reads {MANIFEST_VERSION}; "
                "upgrade ratchet-loop"
            )
        manifest = Manifest(**data)
        texts = {
            **manifest.files,
            **{key: value for key, value in data.items() if key not in ("files", "merged", "version")},
        }
        wrong = [key for key, value in texts.items() if not isinstance(value, str) and (key, value) != ("parent", None)]
        if wrong:
            raise ValueError(f"{wrong[0]} is not a text")
        if not all(isinstance(weight, int | float) for weight in manifest.merged.values()):
            raise ValueError("a weight in merged is not a number")
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise AdapterError(f"{folder / MANIFEST} is not a manifest ({fault}); copy the folder again") from fault
    return manifest


def _check_config(path: Path) -> None:
    """Refuse what PEFT would import, or what is not served."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as fault:
        raise AdapterError(f"{path} is not JSON ({fault}); expected the file PEFT writes") from fault
    kind = data.get("peft_type") if isinstance(data, dict) else type(data).__name__
    if not isinstance(data, dict) or kind not in (LORA, *VIRTUAL, FULL):
        raise AdapterError(f"{path} has peft_type {kind!r}; expected {LORA}, {', '.join(VIRTUAL)} or {FULL}")
    # PEFT imports the modules that the first two name, and hands the others to what reads a tokenizer.
    for key in ("auto_mapping", "megatron_config", "tokenizer_name_or_path", "tokenizer_kwargs"):
        if data.get(key) is not None:
            raise AdapterError(
                f"{path} names code or files in {key}; only plain adapters are loaded, so it must be null"
            )
    size = {LORA: "r", FULL: None}.get(kind, "num_virtual_tokens")
    count = data.get(size) if size else 1
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise AdapterError(f"{path} has {size} = {count!r}; expected a whole number above 0")


_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_HEADER_LIMIT = 100_000_000


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """Tensor entries by name, checked, and where the data begins."""
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, _HEADER_LIMIT):
            raise ValueError(f"its header claims {length} bytes of {size}")
        entries = json.loads(file.read(length), object_pairs_hook=_no_doubles)
        entries.pop("__metadata__", None)
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            (begin, stop), shape = entry["data_offsets"], entry["shape"]
            if not all(type(number) is int and number >= 0 for number in (begin, stop, *shape)):
                raise ValueError(f"tensor {name} has numbers that are not whole or below 0")
            if begin != end or stop - begin != math.prod(shape) * _ITEM_BYTES[entry["dtype"]]:
                raise ValueError(f"tensor {name} does not lie where its shape and its neighbour say")
            end = stop
        if end != size - 8 - length:
            raise ValueError(f"its tensors fill {end} bytes, the file holds {size - 8 - length}")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise AdapterError(f"{path} is not a sound safetensors file ({fault}); copy it again") from fault
    return entries, 8 + length


def _read_tensors(
    file: BinaryIO, entries: Mapping[str, Any], start: int
) -> Iterator[tuple[str, str, Sequence[int], bytes]]:
    for name, entry in entries.items():
        begin, stop = entry["data_offsets"]
        file.seek(start + begin)
        yield name, entry["dtype"], entry["shape"], file.read(stop - begin)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def _sha256(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    # The manifest goes last: its presence tells a reader that the adapter is whole.
    write_whole(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode(), _scratch(folder))


def _scratch(folder: Path) -> Path:
    """Where a file is written before it is renamed: beside the folder, as a leftover inside is refused."""
    return folder.parent / f".{folder.name}.new"
