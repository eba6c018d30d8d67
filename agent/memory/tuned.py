"""A LoRA adapter is added into the weights of a sentence encoder, which is as fast with it as without.

What was loaded is hashed in memory before it is added. It cannot be taken off again: another adapter needs the encoder
loaded anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.errors import AdapterError


def add_adapter(model: Any, folder: Path, *, tensors_sha256: str) -> None:
    """Add a PEFT folder to a SentenceTransformer, in place.

    Raises AdapterError where it does not fit this encoder, LivenessError where it is not the one that was sealed.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    from agent.llm.bank import AdapterBank

    inner = model.transformers_model
    if inner is None:
        raise AdapterError(f"adapter in {folder} needs an encoder of transformers; this one has no such part")
    bank = AdapterBank(inner)
    bank.load("tuned", folder, tensors_sha256=tensors_sha256)
    if not bank.is_lora("tuned"):
        raise AdapterError(f"adapter in {folder} is no LoRA adapter; an encoder takes no other kind")
    bank.activate("tuned")
    wrapped = [(name, layer) for name, layer in inner.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in wrapped:
        merging: Any = layer
        merging.merge()
        inner.set_submodule(name, merging.get_base_layer())
    inner.__dict__.pop("peft_config", None)
