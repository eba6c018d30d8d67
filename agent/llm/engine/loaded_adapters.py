"""Adapters on a loaded model: several at once, one active at a time, verified by hash.

Four kinds, all as PEFT saves them: LoRA adds to the linear layers; prompt and prefix tuning put virtual tokens before
each sequence (`soft_prompts`); fully tuned weights replace those of the base while they are active. The base itself is
never changed. Only safetensors are read. Not thread-safe except for `hash` and `in`: the engine's worker is the only
user.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import AdapterError, LivenessError
from agent.llm.engine.soft_prompts import TENSOR, pairs_of_adapter
from agent.registry.artifact import CONFIG, FULL, LORA, VIRTUAL, WEIGHTS, hash_tensors

if TYPE_CHECKING:
    import torch

    from agent.llm.engine.soft_prompts import LayerPairs

_WRAPPERS = "base_model.model."
_TUNED_COPY = ".ln_tuning_layers."
"""PEFT's mark, in a tensor's name, for the tuned copy of a module."""
_DTYPE_NAMES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}


class LoadedAdapters:
    """The adapters loaded on one model, of which at most one is active."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._base = dict(model.named_parameters(remove_duplicate=False))
        """The base's parameters by name, taken before PEFT wraps any layer."""
        self._names: dict[str, str] = {}
        """By key, the name under which PEFT has the adapter."""
        self._hashes: dict[str, str] = {}
        self._soft_prompts: dict[str, LayerPairs] = {}
        self._weights: dict[str, dict[str, torch.Tensor]] = {}
        """By adapter, the tensors that replace parameters of the base."""
        self._replaced: dict[str, torch.Tensor] = {}
        """The base's own tensors, while an adapter's replace them."""
        self._count = itertools.count()
        self._active: str | None = None
        self._is_settled = True
        """False while the layers may not match `_active`."""

    def __contains__(self, key: str) -> bool:
        return key in self._hashes

    def hash(self, key: str) -> str:
        """Return the hash of the adapter's tensors, computed in memory when it was loaded. Raises AdapterError."""
        if key not in self._hashes:
            raise AdapterError(f"adapter {key!r} is not loaded; pass its folder")
        return self._hashes[key]

    def load(self, key: str, folder: Path, *, tensors_sha256: str | None = None) -> None:
        """Load a PEFT folder onto the model under `key`. Loading the same key again only checks its hash.

        Raises AdapterError where it does not fit this model, LivenessError where the tensors in memory do not have
        the hash `tensors_sha256` (see `live_hash`).
        """
        if key not in self._names:
            self._names[key] = f"a{next(self._count)}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
            try:
                digest = self._load(key, Path(folder))
                _check_hash(key, digest, tensors_sha256)
            except BaseException:
                self.unload(key)
                raise
            self._hashes[key] = digest
        _check_hash(key, self._hashes[key], tensors_sha256)

    def name(self, key: str) -> str:
        """Return the name under which PEFT has an adapter."""
        return self._names[key]

    def is_lora(self, key: str) -> bool:
        """Whether an adapter is a LoRA, not a soft prompt or a set of fully tuned weights."""
        return key not in self._soft_prompts and key not in self._weights

    def soft_prompt(self, key: str | None) -> LayerPairs:
        """Return the keys and values that an adapter puts before every sequence; empty for the other kinds."""
        return self._soft_prompts.get(key, {}) if key is not None else {}

    def unload(self, key: str) -> None:
        """Remove an adapter from the model. Raises AdapterError where it is not loaded."""
        if key not in self._names:
            raise AdapterError(f"adapter {key!r} is not loaded; loaded are {sorted(self._names) or 'none'}")
        name = self._names[key]
        self.activate(None)
        self._soft_prompts.pop(key, None)
        self._weights.pop(key, None)
        for layer in self._layers():
            # PEFT warns when it has to replace an active adapter itself.
            layer.set_adapter([])
            layer.delete_adapter(name)
        getattr(self._model, "peft_config", {}).pop(name, None)
        del self._names[key]
        self._hashes.pop(key, None)
        self._is_settled = False
        self.activate(None)

    def activate(self, key: str | None) -> None:
        """Activate one adapter, or none, for the passes that follow. Raises AdapterError where it is not loaded."""
        if self._is_settled and key == self._active:
            return
        if key is not None and key not in self._names:
            raise AdapterError(f"adapter {key!r} is not loaded; loaded are {sorted(self._names) or 'none'}")
        self._is_settled = False
        is_lora = key is not None and self.is_lora(key)
        for layer in self._layers():
            layer.enable_adapters(is_lora)
            if is_lora and key is not None:
                layer.set_adapter(self._names[key], inference_mode=True)
        # In reverse: a tied parameter has two names and was replaced twice.
        for name, tensor in reversed(self._replaced.items()):
            self._base[name].data = tensor
        self._replaced = {}
        for name, tensor in self._weights.get(key or "", {}).items():
            self._replaced[name], self._base[name].data = self._base[name].data, tensor
        self._active, self._is_settled = key, True

    def live_hash(self, key: str) -> str:
        """Return the hash of a LoRA's tensors in the model, the same as `tensors_hash` computes from its file."""
        return _hash(self._tensors(self._names[key]))

    def _load(self, key: str, folder: Path) -> str:
        """Load a folder of any kind; return the hash of its tensors."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            kind = json.loads((folder / CONFIG).read_bytes())["peft_type"]
            if kind == LORA:
                self._load_lora(self._names[key], folder)
                return self.live_hash(key)
            if kind not in (*VIRTUAL, FULL):
                raise ValueError(f"its peft_type is {kind!r}")
            # The hash is that of the file: below, the tensors become keys and values, or take the dtype of the layer.
            tensors = load_file(folder / WEIGHTS)
            if kind in VIRTUAL:
                self._load_soft_prompt(key, kind, tensors)
            else:
                self._load_weights(key, tensors)
            return _hash(tensors)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise AdapterError(
                f"adapter in {folder} does not fit this base ({error}); retrain or switch base"
            ) from error

    def _load_soft_prompt(self, key: str, kind: str, tensors: dict[str, torch.Tensor]) -> None:
        import torch

        if set(tensors) != {TENSOR}:
            raise ValueError(f"it holds {sorted(tensors)}, expected {TENSOR} alone")
        rows = tensors[TENSOR].to(self._model.device, self._model.dtype)
        self.activate(None)
        with torch.no_grad():
            self._soft_prompts[key] = pairs_of_adapter(self._model, kind, rows)

    def _load_weights(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        weights = {}
        for saved, tensor in tensors.items():
            name = saved.removeprefix(_WRAPPERS).replace(_TUNED_COPY, ".")
            own = self._base.get(name)
            if own is None or own.shape != tensor.shape:
                expected = "none" if own is None else str(tuple(own.shape))
                raise ValueError(f"{saved!r} has shape {tuple(tensor.shape)}, the base has {expected}")
            weights[name] = tensor.to(own)
        self._weights[key] = weights

    def _tensors(self, name: str) -> dict[str, Any]:
        """Return the tensors of one LoRA in the model, under the names PEFT saves them by.

        `peft.get_peft_model_state_dict` also returns those of other adapters on other layers.
        """
        tensors = {}
        for key, tensor in self._model.state_dict().items():
            places = key.split(".")
            if name in places:
                places.remove(name)
                saved = _saved_name(".".join(places))
                tensors[saved.removesuffix(".weight") if "lora_magnitude_vector" in places else saved] = tensor
        return tensors

    def _load_lora(self, name: str, folder: Path) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft import set_peft_model_state_dict as set_state
        from safetensors.torch import load_file

        # PEFT warns about a model that has an adapter already; here several are intended.
        others = self._model.__dict__.pop("peft_config", {})
        self._is_settled = False
        try:
            config = LoraConfig.from_pretrained(str(folder))
            _check_plain_lora(config, folder)
            config.inference_mode = True
            tensors = load_file(folder / "adapter_model.safetensors")
            inject_adapter_in_model(config, self._model, adapter_name=name)
            _cast_to_float32(self._model, name)
            report = set_state(self._model, tensors, adapter_name=name)
            needed = set(self._tensors(name))
        finally:
            self._model.peft_config = {**others, **self._model.__dict__.get("peft_config", {})}
            self._model.eval()
            self._model.requires_grad_(False)
        mismatched = list(getattr(report, "unexpected_keys", []) or []) or sorted(
            needed ^ set(map(_saved_name, tensors))
        )
        if mismatched:
            raise AdapterError(
                f"adapter in {folder}: {mismatched[0]!r} is only in the file, or only in what its "
                "configuration requires on this base; retrain or switch base"
            )
        self.activate(None)

    def _layers(self) -> list[Any]:
        if not self._names and self._is_settled:
            return []
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]


def _cast_to_float32(model: Any, name: str) -> None:
    """Undo PEFT's cast to the dtype of the layer: adapters are trained in float32."""
    for key, module in model.named_modules():
        if name in key.split("."):
            module.float()


def _saved_name(name: str) -> str:
    """Return a tensor's name in PEFT's file, where the model has two wrappers around it."""
    return name if name.startswith(_WRAPPERS) else _WRAPPERS + name


def _check_plain_lora(config: Any, folder: Path) -> None:
    """Raise AdapterError for a LoRA that changes more than its layers: only those are switched."""
    if config.bias != "none":
        raise AdapterError(f"adapter in {folder} trains biases ({config.bias!r}); train it with bias='none'")
    for name in ("modules_to_save", "trainable_token_indices"):
        if getattr(config, name, None):
            raise AdapterError(f"adapter in {folder} has {name}; only plain LoRA is served, so leave it out")


def _hash(tensors: dict[str, Any]) -> str:
    return hash_tensors(
        (name, _DTYPE_NAMES[str(tensor.dtype)], tuple(tensor.shape), _bytes(tensor)) for name, tensor in tensors.items()
    )


def _check_hash(key: str, digest: str, expected: str | None) -> None:
    if expected is not None and digest != expected:
        raise LivenessError(
            f"adapter {key!r} has hash {digest[:12]} in memory, {expected[:12]} expected; load it again, and if "
            "that fails roll back"
        )


def _bytes(tensor: Any) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    data: bytes = flat.numpy().tobytes()
    return data
