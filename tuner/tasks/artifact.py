"""A trained task on disk: a sealed adapter folder with `task.json`, which says what the head is for.

`adapter_model.safetensors` holds what was trained of the encoder, as PEFT names it, and the head. No pickle is written
or read. See `agent.registry.artifact`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import AdapterError
from agent.llm.weights.load import ModelFolder, encoder_weights
from agent.registry.artifact import CARD, CONFIG, TASK, WEIGHTS, Manifest, seal, tensors_hash, verify
from tuner.pipeline.candidate import code_version
from tuner.tasks.head.classify import ClassifyTask
from tuner.tasks.head.model import LoadedEncoder, TaskModel, load_encoder
from tuner.tasks.head.ngrams import NgramModel
from tuner.tasks.head.tasks import HeadTask, make_task
from tuner.tasks.settings import ADAPTERS, TaskSettings

VERSION = 1


@dataclass(frozen=True)
class Sealed:
    """What a folder is to say of where it came from."""

    base: ModelFolder
    dataset_hash: str
    tuning: str
    created_at: str
    parent: str | None = None
    """Id of the training that this one goes on from."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `task.json`, for whoever trains again."""


def save(
    model: TaskModel | NgramModel, folder: Path, sealed: Sealed, card: Callable[[str], str], report: Mapping[str, bytes]
) -> Manifest:
    """Write a model's folder, whole or not at all; `card` is given its id. Raises AdapterError where one is there."""
    return publish(folder, sealed, card, report, lambda staged: _write(model, staged, sealed))


def publish(
    folder: Path,
    sealed: Sealed,
    card: Callable[[str], str],
    report: Mapping[str, bytes],
    write: Callable[[Path], None],
) -> Manifest:
    """Seal what `write` puts into a folder with card and report, whole or not at all. As `save`."""
    if folder.exists() and any(folder.iterdir()):
        raise AdapterError(f"{folder} is not empty; name a new folder with --out, or remove it")
    staged = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    (staged / "report").mkdir(parents=True)
    write(staged)
    id = f"{sealed.created_at[:10].replace('-', '')}-{tensors_hash(staged / WEIGHTS)[:8]}"
    (staged / CARD).write_text(card(id), encoding="utf-8")
    for name, content in report.items():
        (staged / "report" / name).write_bytes(content)
    manifest = seal(
        staged,
        id=id,
        base=sealed.base.name,
        base_revision=sealed.base.revision,
        dataset_hash=sealed.dataset_hash,
        parent=sealed.parent,
        tuning=sealed.tuning,
        created_at=sealed.created_at,
        code_version=code_version(),
    )
    if folder.exists():
        folder.rmdir()
    staged.rename(folder)
    return manifest


def open_folder(
    folder: Path, models: Path, *, device: str = "cpu", progress: Callable[[str], None] | None = None
) -> tuple[TaskModel | NgramModel, Manifest]:
    """The model of a folder, verified, on the encoder it was trained on.

    Raises AdapterError where the folder is not whole or the encoder is another by now.
    """
    from safetensors.torch import load_file

    manifest = verify(folder)
    told = read_task(folder)
    base = encoder_weights(manifest.base, models, progress=progress)
    if base.revision != manifest.base_revision:
        raise AdapterError(
            f"{folder} was trained on {manifest.base} of revision {manifest.base_revision[:12]}, and what is there has "
            f"{base.revision[:12]}; install that one, or train again"
        )
    encoder = None if told["settings"].get("method") == "ngrams" else load_encoder(base, device=device)
    model = rebuilt(encoder, told)
    model.load_state(load_file(folder / WEIGHTS))
    if isinstance(model, TaskModel):
        model.eval()
    return model, manifest


def read_task(folder: Path) -> dict[str, Any]:
    """`task.json`, of the version that this code reads."""
    if not (folder / TASK).is_file():
        raise AdapterError(f"{folder} has no {TASK}; expected a folder that `ratchet task train` wrote")
    told: dict[str, Any] = json.loads((folder / TASK).read_text("utf-8"))
    if told.get("version") != VERSION:
        raise AdapterError(f"{folder / TASK} has version {told.get('version')}, this code reads {VERSION}; upgrade")
    return told


def rebuilt(encoder: LoadedEncoder | None, told: Mapping[str, Any]) -> TaskModel | NgramModel:
    """An untrained model of the shape that `task.json` tells of."""
    task = make_task(told["task"], told["labels"], told["options"])
    return untrained(encoder, task, TaskSettings(**told["settings"]))


def untrained(encoder: LoadedEncoder | None, task: HeadTask, settings: TaskSettings) -> TaskModel | NgramModel:
    """An untrained model; `encoder` is needed by all methods but `ngrams`."""
    if settings.method == "ngrams":
        assert isinstance(task, ClassifyTask)
        return NgramModel(task, settings)
    assert encoder is not None
    return TaskModel(encoder, task, settings)


def _write(model: TaskModel | NgramModel, folder: Path, sealed: Sealed) -> None:
    from safetensors.torch import save_file

    settings = asdict(model.settings)
    told = {
        "version": VERSION,
        "task": model.task.name,
        "labels": list(model.task.labels),
        "options": model.task.options(),
        "base": sealed.base.name,
        "revision": sealed.base.revision,
        "settings": settings,
        **sealed.told,
    }
    (folder / TASK).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = {name: one.contiguous().cpu() for name, one in model.state().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(
        json.dumps(_config(model, sealed.base.name, tensors), indent=1) + "\n", encoding="utf-8"
    )


def _config(model: TaskModel | NgramModel, base: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configuration: of the adapter, or of the modules of which a trained copy is kept."""
    if isinstance(model, TaskModel) and model.settings.method in ADAPTERS:
        config: dict[str, Any] = model.encoder.peft_config["default"].to_dict()
        plain = {name: sorted(one) if isinstance(one, set) else one for name, one in config.items()}
        return {**plain, "base_model_name_or_path": base, "auto_mapping": None, "inference_mode": True}
    mark, front = ".ln_tuning_layers.", "base_model.model."
    modules = sorted({name.split(mark)[0].removeprefix(front) for name in tensors if mark in name})
    return {
        "peft_type": "LN_TUNING",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": modules,
        "auto_mapping": None,
    }
