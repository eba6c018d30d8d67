"""A new adapter that is the weighted sum of others: what each changes of a layer's weights, times its weight, added up.

The sum is exact. The factors of all lie side by side, so that its rank is the sum of theirs, and what each is
multiplied by goes into its second factor: no rank is cut and alpha / r is 1. Only LoRA on linear layers has such a
sum; the others are refused. Not promised: that what two adapters learnt apart works together; that is the gate's to
say. Source: task arithmetic (Ilharco et al., 2023).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from agent.errors import AdapterError
from agent.llm.prompt.json_grammar import canonical
from agent.llm.prompt.render import Message, Renderer, system_text
from agent.llm.weights import load as weights
from agent.registry.artifact import CONFIG, WEIGHTS, verify
from agent.registry.registry import Adapter
from agent.runtime import Runtime
from agent.util.ids import timestamp
from agent.util.threads import give_back_memory, in_own_team
from tuner.methods.base import write
from tuner.pipeline.candidate import Origin, check_lives, fresh_model, take_in
from tuner.reports.model_card import merge_card
from tuner.tree.packing import Example

if TYPE_CHECKING:
    import torch

_WRAPPERS = "base_model.model."
_PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_MAY_DIFFER = frozenset(
    {
        *_PLACES,
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("lora_dropout", "fan_in_fan_out", "inference_mode"),
        *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision"),
    }
)
"""What of a configuration may be other than PEFT's default: where the factors are, how they are scaled, and names."""


@dataclass(frozen=True)
class Part:
    """One adapter of a sum."""

    id: str
    folder: Path
    weight: float


def merge(
    runtime: Runtime, chosen: Sequence[tuple[str, float]], *, say: Callable[[str], None] = lambda text: None
) -> Adapter:
    """Add up adapters, each named by its id and with its weight; the sum goes into the registry as trained.

    Raises AdapterError for fewer than two, for one that is named twice, is of another base or has no such sum, and
    LivenessError where the sum changes nothing.
    """
    if len(chosen) < 2:
        raise AdapterError(f"a merge takes two adapters or more, and {len(chosen)} was named; see `ratchet adapters`")
    project = runtime.project
    adapters = [runtime.registry.get(id) for id, _ in chosen]
    base = weights.resolve_model(project.named(project.settings.model.base), project.home.models, progress=say)
    parts = [Part(one.id, one.folder, float(weight)) for one, (_, weight) in zip(adapters, chosen, strict=True)]
    _check_parts(parts)
    for one in adapters:
        _check_base(one, base)
    manifests = [verify(part.folder) for part in parts]
    datasets = [[one.dataset_hash, part.weight] for one, part in zip(manifests, parts, strict=True)]
    named = {part.id: part.weight for part in parts}
    # Beside the others: a folder is taken in by renaming it.
    with TemporaryDirectory(prefix=".merge-", dir=project.home.adapters) as scratch:
        made = Path(scratch) / "adapter"
        rank = write_sum(parts, made)
        example = _prompt(runtime, Renderer(weights.load_tokenizer(base)))
        in_own_team(
            lambda: check_lives(
                fresh_model(project, base),
                made,
                example,
                advice="the adapters cancel each other out; choose other weights",
            )
        )
        give_back_memory()
        return take_in(
            runtime.registry,
            made,
            Origin(base, _hash(datasets), tuning="merge", created_at=timestamp(), merged=named),
            lambda name: merge_card(name, base.name, named, rank),
            reason=f"merge of {', '.join(f'{id} times {weight:g}' for id, weight in named.items())}",
        )


def write_sum(parts: Sequence[Part], folder: Path) -> int:
    """Write the weighted sum of adapters as a PEFT folder and return its rank, the highest of all layers.

    Raises AdapterError for a part that is not LoRA on linear layers and nothing else.
    """
    import torch
    from peft import LoraConfig

    configs = [_config(part) for part in parts]
    changes = [_change(part, config) for part, config in zip(parts, configs, strict=True)]
    layers = sorted({layer for change in changes for layer in change})
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for layer in layers:
        factors = [change[layer] for change in changes if layer in change]
        _check_shapes(layer, factors)
        first, second = torch.cat([a for a, _ in factors], dim=0), torch.cat([b for _, b in factors], dim=1)
        tensors[f"{_WRAPPERS}{layer}.lora_A.weight"] = first
        tensors[f"{_WRAPPERS}{layer}.lora_B.weight"] = second
        ranks[layer] = len(first)
    rank = max(ranks.values())
    others = {layer: one for layer, one in ranks.items() if one != rank}
    alike = not others and all(set(change) == set(layers) for change in changes)
    if alike and all(getattr(one, name) == getattr(configs[0], name) for one in configs for name in _PLACES):
        # Kept in the words of the parts, so that a tuning with the same targets can go on from the sum.
        places = {name: getattr(configs[0], name) for name in _PLACES}
    else:
        places = {"target_modules": layers}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=dict(others),
        fan_in_fan_out=configs[0].fan_in_fan_out,
        task_type=configs[0].task_type,
        base_model_name_or_path=configs[0].base_model_name_or_path,
        inference_mode=True,
        **places,
    )
    write(config, tensors, folder)
    return rank


def _check_parts(parts: Sequence[Part]) -> None:
    id, count = Counter(part.id for part in parts).most_common(1)[0]
    if count > 1:
        raise AdapterError(f"adapter {id} is named {count} times; name it once, with the sum of its weights")
    for part in parts:
        if not math.isfinite(part.weight) or part.weight == 0:
            raise AdapterError(f"adapter {part.id} has weight {part.weight:g}; expected a number above or below 0")


def _check_base(adapter: Adapter, base: weights.ModelFolder) -> None:
    if adapter.base_revision != base.revision:
        raise AdapterError(
            f"adapter {adapter.id} was made for base {adapter.base!r}, revision {adapter.base_revision[:12]}, not for "
            f"{base.name!r}, revision {base.revision[:12]}; merge adapters of the base that model.base names"
        )


def _config(part: Part) -> Any:
    """The LoraConfig of a part. Raises AdapterError where more acts than factors of linear layers."""
    from peft import LoraConfig

    kind = json.loads((part.folder / CONFIG).read_bytes())["peft_type"]
    if kind != "LORA":
        raise AdapterError(f"adapter {part.id} has peft_type {kind!r}; only 'LORA' adapters can be merged")
    config = LoraConfig.from_pretrained(str(part.folder))
    if config.use_dora:
        raise AdapterError(
            f"adapter {part.id} was trained with DoRA, whose length of each output is no sum; "
            "only LoRA, rsLoRA and LoRA+ can be merged"
        )
    plain: Any = LoraConfig()
    for name, usual in plain.to_dict().items():
        found = getattr(config, name)
        if name not in _MAY_DIFFER and found != usual:
            raise AdapterError(f"adapter {part.id} has {name} {found!r}, and only plain LoRA can be merged")
    return config


def _change(part: Part, config: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By layer the factors A [r, in] and B [out, r], float32; B A is what the part changes, times its weight."""
    from peft.utils.other import get_pattern_key
    from safetensors.torch import load_file

    tensors = load_file(part.folder / WEIGHTS)
    layers = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    odd = {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"} ^ set(tensors)
    odd |= {name for name, tensor in tensors.items() if tensor.dim() != 2 or not name.startswith(_WRAPPERS)}
    if odd:
        raise AdapterError(
            f"adapter {part.id}: {min(odd)!r} is none of two factors of a linear layer, and only those can be merged"
        )
    found = {}
    for layer in layers:
        name = layer.removeprefix(_WRAPPERS)
        first, second = (tensors[f"{layer}.lora_{side}.weight"].float() for side in "AB")
        rank = len(first)
        alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), name), config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        found[name] = first, second * (part.weight * scale)
    return found


def _check_shapes(layer: str, factors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    shapes = {(len(second), first.shape[1]) for first, second in factors}
    if len(shapes) > 1:
        raise AdapterError(f"the adapters change {layer} in the shapes {sorted(shapes)}; they are not of one base")


def _prompt(runtime: Runtime, renderer: Renderer) -> Example:
    """The beginning of the system prompt as if the model were to say it; a dataset may be gone."""
    ids = renderer.message(Message("system", system_text(runtime.frame()))).ids[:256]
    return Example(ids, (True,) * len(ids))


def _hash(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
