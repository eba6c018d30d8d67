"""Adapters on a live model: loaded beside each other, switched between passes, checked by hash.

Four kinds, all as PEFT saves them: LoRA stands beside the linear layers; prompt and prefix adapters are virtual
tokens before each sequence (`virtual`); and what full fine-tuning made takes the place of the base's weights while it
is active. The base itself is never changed. Only safetensors are read. Not thread-safe but for `hash` and `in`: the
engine's worker is its only user.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import AdapterError, LivenessError
from agent.llm.engine import soft_prompts as virtual
from agent.registry.artifact import CONFIG, FULL, LORA, VIRTUAL, WEIGHTS, hash_tensors

if TYPE_CHECKING:
    import torch

_WRAPPERS = "base_model.model."
_COPY = ".ln_tuning_layers."
"""How PEFT marks, in a tensor's name, the copy of a module that acts in its place."""
_SPELLED = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}


class AdapterBank:
    """The adapters loaded on one model, of which one at a time, or none, is active."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._base = dict(model.named_parameters(remove_duplicate=False))
        """Of the bare base, by name: layers are wrapped later, parameters stay."""
        self._names: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self._virtual: dict[str, virtual.Pairs] = {}
        self._weights: dict[str, dict[str, torch.Tensor]] = {}
        """By adapter, what takes the place of the base's parameters."""
        self._aside: dict[str, torch.Tensor] = {}
        """The base's own, while others act in their place."""
        self._count = itertools.count()
        self._active: str | None = None
        self._settled = True
        """False while the layers may be on something else than `_active`."""

    def __contains__(self, key: str) -> bool:
        return key in self._hashes

    def hash(self, key: str) -> str:
        """The hash of the adapter's tensors, taken in memory when it was loaded. Raises AdapterError."""
        if key not in self._hashes:
            raise AdapterError(f"adapter {key!r} is not loaded; pass its folder")
        return self._hashes[key]

    def load(self, key: str, folder: Path, *, tensors_sha256: str | None = None) -> None:
        """Put a PEFT folder on the model under `key`. Loading the same tensors again changes nothing.

        Raises AdapterError where it does not fit this model, LivenessError where what now lies in memory is
        not what `tensors_sha256` names (see `live_hash`).
        """
        if key not in self._names:
            self._names[key] = f"a{next(self._count)}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
            try:
                found = self._load(key, Path(folder))
                _check_hash(key, found, tensors_sha256)
            except BaseException:
                self.unload(key)
                raise
            self._hashes[key] = found
        _check_hash(key, self._hashes[key], tensors_sha256)

    def name(self, key: str) -> str:
        """What PEFT knows an adapter by."""
        return self._names[key]

    def is_lora(self, key: str) -> bool:
        """Whether an adapter stands beside the layers, and not before the sequence or in place of the weights."""
        return key not in self._virtual and key not in self._weights

    def virtual(self, key: str | None) -> virtual.Pairs:
        """The keys and values that an adapter puts before every sequence; for most kinds none."""
        return self._virtual.get(key, {}) if key is not None else {}

    def unload(self, key: str) -> None:
        """Take an adapter off the model."""
        if key not in self._names:
            raise AdapterError(f"adapter {key!r} is not loaded; loaded are {sorted(self._names) or 'none'}")
        name = self._names[key]
        self.activate(None)
        self._virtual.pop(key, None)
        self._weights.pop(key, None)
        for layer in self._layers():
            # PEFT warns when it must choose itself what follows an active adapter.
            layer.set_adapter([])
            layer.delete_adapter(name)
        getattr(self._model, "peft_config", {}).pop(name, None)
        del self._names[key]
        self._hashes.pop(key, None)
        self._settled = False
        self.activate(None)

    def activate(self, key: str | None) -> None:
        """Make one adapter act in the passes to come, or none."""
        if self._settled and key == self._active:
            return
        if key is not None and key not in self._names:
            raise AdapterError(f"adapter {key!r} is not loaded; loaded are {sorted(self._names) or 'none'}")
        self._settled = False
        beside = key is not None and self.is_lora(key)
        for layer in self._layers():
            layer.enable_adapters(beside)
            if beside and key is not None:
                layer.set_adapter(self._names[key], inference_mode=True)
        # Backwards: a parameter that is tied has two names, and was taken twice.
        for name, held in reversed(self._aside.items()):
            self._base[name].data = held
        self._aside = {}
        for name, tensor in self._weights.get(key or "", {}).items():
            self._aside[name], self._base[name].data = self._base[name].data, tensor
        self._active, self._settled = key, True

    def live_hash(self, key: str) -> str:
        """The hash of a LoRA adapter's tensors as they act, as `agent.registry.artifact.tensors_hash` makes it from the file."""
        return _hash(self._tensors(self._names[key]))

    def _load(self, key: str, folder: Path) -> str:
        """Put a folder of any kind on the model; returns the hash of what was loaded."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            kind = json.loads((folder / CONFIG).read_bytes())["peft_type"]
            if kind == LORA:
                self._put(self._names[key], folder)
                return self.live_hash(key)
            if kind not in (*VIRTUAL, FULL):
                raise ValueError(f"its peft_type is {kind!r}")
            # What acts is made from these: keys and values, or weights in the precision of the layer.
            tensors = load_file(folder / WEIGHTS)
            if kind in VIRTUAL:
                self._put_before(key, kind, tensors)
            else:
                self._put_in_place(key, tensors)
            return _hash(tensors)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as fault:
            raise AdapterError(
                f"adapter in {folder} does not fit this base ({fault}); retrain or switch base"
            ) from fault

    def _put_before(self, key: str, kind: str, tensors: dict[str, torch.Tensor]) -> None:
        import torch

        if set(tensors) != {virtual.TENSOR}:
            raise ValueError(f"it holds {sorted(tensors)}, expected {virtual.TENSOR} alone")
        rows = tensors[virtual.TENSOR].to(self._model.device, self._model.dtype)
        self.activate(None)
        with torch.no_grad():
            self._virtual[key] = virtual.pairs_of(self._model, kind, rows)

    def _put_in_place(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        found = {}
        for saved, tensor in tensors.items():
            name = saved.removeprefix(_WRAPPERS).replace(_COPY, ".")
            own = self._base.get(name)
            if own is None or own.shape != tensor.shape:
                there = "none" if own is None else str(tuple(own.shape))
                raise ValueError(f"{saved!r} has shape {tuple(tensor.shape)}, the base has {there}")
            found[name] = tensor.to(own)
        self._weights[key] = found

    def _tensors(self, name: str) -> dict[str, Any]:
        """The tensors of one adapter as they act, under the names PEFT saves them by.

        `peft.get_peft_model_state_dict` also gives those of adapters that lie beside it on other layers.
        """
        found = {}
        for key, tensor in self._model.state_dict().items():
            places = key.split(".")
            if name in places:
                places.remove(name)
                saved = _as_saved(".".join(places))
                found[saved.removesuffix(".weight") if "lora_magnitude_vector" in places else saved] = tensor
        return found

    def _put(self, name: str, folder: Path) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft import set_peft_model_state_dict as set_state
        from safetensors.torch import load_file

        # PEFT warns about a model that has an adapter already; several are what is meant here.
        others = self._model.__dict__.pop("peft_config", {})
        self._settled = False
        try:
            config = LoraConfig.from_pretrained(str(folder))
            _check_plain(config, folder)
            config.inference_mode = True
            tensors = load_file(folder / "adapter_model.safetensors")
            inject_adapter_in_model(config, self._model, adapter_name=name)
            _in_float32(self._model, name)
            report = set_state(self._model, tensors, adapter_name=name)
            needed = set(self._tensors(name))
        finally:
            self._model.peft_config = {**others, **self._model.__dict__.get("peft_config", {})}
            self._model.eval()
            self._model.requires_grad_(False)
        odd = list(getattr(report, "unexpected_keys", []) or []) or sorted(needed ^ set(map(_as_saved, tensors)))
        if odd:
            raise AdapterError(
                f"adapter in {folder}: {odd[0]!r} is on one side alone, in the file or in what its "
                "configuration asks for on this base; retrain or switch base"
            )
        self.activate(None)

    def _layers(self) -> list[Any]:
        if not self._names and self._settled:
            return []
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]


def _in_float32(model: Any, name: str) -> None:
    """PEFT gives an adapter the dtype of the layer it is put on; what was trained is float32."""
    for key, module in model.named_modules():
        if name in key.split("."):
            module.float()


def _as_saved(name: str) -> str:
    """A tensor's name as PEFT writes it into the file, where the model stands inside its own two wrappers."""
    return name if name.startswith(_WRAPPERS) else _WRAPPERS + name


def _check_plain(config: Any, folder: Path) -> None:
    """Refuse what acts outside of LoRA layers, which alone are switched."""
    if config.bias != "none":
        raise AdapterError(f"adapter in {folder} trains biases ({config.bias!r}); train it with bias='none'")
    for name in ("modules_to_save", "trainable_token_indices"):
        if getattr(config, name, None):
            raise AdapterError(f"adapter in {folder} has {name}; only plain LoRA is served, so leave it out")


def _hash(tensors: dict[str, Any]) -> str:
    return hash_tensors(
        (name, _SPELLED[str(one.dtype)], tuple(one.shape), _bytes(one)) for name, one in tensors.items()
    )


def _check_hash(key: str, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise LivenessError(
            f"adapter {key!r}: in memory lies {found[:12]}, trained was {wanted[:12]}; load it again, and if "
            "that fails roll back"
        )


def _bytes(tensor: Any) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    data: bytes = flat.numpy().tobytes()
    return data
