"""Adapters on a live model: loaded beside each other, switched between passes, checked by hash.

The base weights are never changed: an adapter is added on the side and can be taken off again. Only
safetensors are read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from agent.adapters import hash_tensors
from agent.errors import AdapterError, LivenessError

_SPELLED = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}


class AdapterBank:
    """The adapters loaded on one model, of which one at a time, or none, is active."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._names: dict[str, str] = {}
        self._active: str | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._names

    def load(self, key: str, folder: Path, *, tensors_sha256: str | None = None) -> None:
        """Put a PEFT folder on the model under `key`. Loading a key again changes nothing.

        Raises AdapterError where it does not fit this model, LivenessError where what now lies in memory is
        not what `tensors_sha256` names (see `live_hash`).
        """
        if key in self._names:
            return
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
        from safetensors.torch import load_file

        name = f"a{len(self._names)}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        try:
            config = LoraConfig.from_pretrained(str(folder))
            config.inference_mode = True
            tensors = load_file(folder / "adapter_model.safetensors")
            inject_adapter_in_model(config, self._model, adapter_name=name)
            report = set_peft_model_state_dict(self._model, tensors, adapter_name=name)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as fault:
            raise AdapterError(f"adapter in {folder} does not fit this base ({fault}); retrain or switch base") from fault
        unexpected = list(getattr(report, "unexpected_keys", []) or [])
        if unexpected:
            raise AdapterError(f"adapter in {folder} holds {unexpected[0]!r}, which this base has no place for; retrain or switch base")
        self._names[key] = name
        self._model.eval()
        self._model.requires_grad_(False)
        self._active = "?"
        self.activate(None)
        found = self.live_hash(key)
        if tensors_sha256 is not None and found != tensors_sha256:
            self.unload(key)
            raise LivenessError(f"adapter {key!r}: in memory lies {found[:12]}, trained was {tensors_sha256[:12]}; load it again, and if that fails roll back")

    def unload(self, key: str) -> None:
        """Take an adapter off the model."""
        name = self._names.pop(key)
        for layer in self._layers():
            layer.delete_adapter(name)
        self._active = "?"
        self.activate(None)

    def activate(self, key: str | None) -> None:
        """Make one adapter act in the passes to come, or none."""
        if key == self._active:
            return
        if key is not None and key not in self._names:
            raise AdapterError(f"adapter {key!r} is not loaded; loaded are {sorted(self._names) or 'none'}")
        for layer in self._layers():
            layer.enable_adapters(key is not None)
            if key is not None:
                layer.set_adapter(self._names[key], inference_mode=True)
        self._active = key

    def live_hash(self, key: str) -> str:
        """The hash of the tensors that act, as `agent.adapters.tensors_hash` computes it from the file."""
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(self._model, adapter_name=self._names[key])
        return hash_tensors((name, _SPELLED[str(one.dtype)], tuple(one.shape), _bytes(one)) for name, one in tensors.items())

    def _layers(self) -> list[Any]:
        if not self._names and self._active is None:
            return []
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]


def _bytes(tensor: Any) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    data: bytes = flat.numpy().tobytes()
    return data
