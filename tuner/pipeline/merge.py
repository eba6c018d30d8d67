"""Merges adapters: a new candidate whose change of the weights is the weighted sum of theirs.

PEFT concatenates the low-rank factors (`add_weighted_adapter` with "cat"), so the sum is exact and its rank is the sum
of the ranks. Only LoRA on linear layers has such a sum; other adapters are refused. Does not guarantee that skills
trained apart work together; the gate decides that. Source: task arithmetic (Ilharco et al., 2023).
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agent.errors import AdapterError
from agent.llm.prompt.json_grammar import canonical
from agent.llm.prompt.render import Message, Renderer, system_text
from agent.llm.weights import load as weights
from agent.registry.artifact import CONFIG, WEIGHTS, verify
from agent.registry.registry import Adapter
from agent.runtime import Runtime
from agent.util.ids import timestamp
from agent.util.threads import give_back_memory, run_in_thread
from tuner.methods.base import write_peft_folder
from tuner.pipeline.candidate import CandidateOrigin, check_lives, fresh_model, take_in
from tuner.reports.model_card import merge_card
from tuner.tree.packing import Example

_PREFIX = "base_model.model."
_PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_MAY_DIFFER = frozenset(
    {
        *_PLACES,
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("lora_dropout", "fan_in_fan_out", "inference_mode"),
        *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision"),
    }
)
"""Keys of a configuration that need not have PEFT's default: which layers, how they are scaled, and names."""


@dataclass(frozen=True)
class MergePart:
    """One adapter of a merge."""

    id: str
    folder: Path
    weight: float


def merge(
    runtime: Runtime, adapters: Sequence[tuple[str, float]], *, say: Callable[[str], None] = lambda text: None
) -> Adapter:
    """Add the weighted sum of adapters to the registry as trained.

    Args:
        runtime: Of the project.
        adapters: Ids with weights, two or more.
        say: Receives messages for the user.

    Raises:
        AdapterError: There are fewer than two, one is named twice, of another base, or not plain LoRA.
        LivenessError: The sum changes no output.
    """
    if len(adapters) < 2:
        raise AdapterError(f"a merge takes two adapters or more, and {len(adapters)} was named; see `ratchet adapters`")
    project = runtime.project
    entries = [runtime.registry.get(id) for id, _ in adapters]
    base = weights.resolve_model(project.named(project.settings.model.base), project.home.models, progress=say)
    parts = [
        MergePart(entry.id, entry.folder, float(weight)) for entry, (_, weight) in zip(entries, adapters, strict=True)
    ]
    _check_parts(parts)
    for entry in entries:
        _check_base(entry, base)
    datasets = [[verify(part.folder).dataset_hash, part.weight] for part in parts]
    merged = {part.id: part.weight for part in parts}
    # In the folder of the adapters, because `take_in` renames it.
    with TemporaryDirectory(prefix=".merge-", dir=project.home.adapters) as scratch:
        folder = Path(scratch) / "adapter"
        rank = run_in_thread(lambda: write_sum(fresh_model(project, base, "float32"), parts, folder))
        give_back_memory()
        example = _prompt_example(runtime, Renderer(weights.load_tokenizer(base)))
        run_in_thread(
            lambda: check_lives(
                fresh_model(project, base),
                folder,
                example,
                advice="the adapters cancel each other out; choose other weights",
            )
        )
        give_back_memory()
        return take_in(
            runtime.registry,
            folder,
            CandidateOrigin(base, _hash(datasets), tuning="merge", created_at=timestamp(), merged=merged),
            lambda name: merge_card(name, base.name, merged, rank),
            reason=f"merge of {', '.join(f'{id} times {weight:g}' for id, weight in merged.items())}",
        )


def write_sum(model: Any, parts: Sequence[MergePart], folder: Path) -> int:
    """Write the weighted sum of adapters as a PEFT folder and return its rank.

    Args:
        model: The base, in float32; left as it was.
        parts: The adapters.
        folder: Where the sum goes.

    Raises:
        AdapterError: A part is not plain LoRA on linear layers, or does not fit the model.
    """
    from peft import get_peft_model_state_dict

    for part in parts:
        _check_config(part)
    layers = [_adapted_layers(part) for part in parts]
    names = [f"part{place}" for place in range(len(parts))]
    peft_model = _load_parts(model, parts, names)
    configs = [peft_model.peft_config[name] for name in names]
    if any(getattr(config, place) != getattr(configs[0], place) for config in configs for place in _PLACES):
        # PEFT unites the target modules only, so each part names its layers. Otherwise the sum keeps the targets of
        # the parts, so that a tuning with the same targets can start from it.
        for config, adapted in zip(configs, layers, strict=True):
            config.target_modules = set(adapted)
            config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    # The sum copies this configuration, and the layers of the parts are scaled already.
    configs[0].use_rslora = False
    peft_model.base_model.add_weighted_adapter(names, [part.weight for part in parts], "sum", combination_type="cat")
    config = peft_model.peft_config["sum"]
    config.inference_mode = True
    write_peft_folder(config, get_peft_model_state_dict(peft_model, adapter_name="sum"), folder)
    peft_model.unload()
    return int(config.r)


def _check_parts(parts: Sequence[MergePart]) -> None:
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


def _check_config(part: MergePart) -> None:
    """Raise AdapterError where a part is more than low-rank factors of linear layers."""
    from peft import LoraConfig

    kind = json.loads((part.folder / CONFIG).read_bytes())["peft_type"]
    if kind != "LORA":
        raise AdapterError(f"adapter {part.id} has peft_type {kind!r}; only 'LORA' adapters can be merged")
    config = LoraConfig.from_pretrained(str(part.folder))
    if config.use_dora:
        raise AdapterError(
            f"adapter {part.id} was trained with DoRA, whose norm of each output cannot be summed; "
            "only LoRA, rsLoRA and LoRA+ can be merged"
        )
    plain: Any = LoraConfig()
    for name, default in plain.to_dict().items():
        value = getattr(config, name)
        if name not in _MAY_DIFFER and value != default:
            raise AdapterError(f"adapter {part.id} has {name} {value!r}, and only plain LoRA can be merged")


def _adapted_layers(part: MergePart) -> list[str]:
    """Return the names of the layers that a part changes. Raises AdapterError for other tensors than their factors."""
    from safetensors import safe_open

    with safe_open(part.folder / WEIGHTS, framework="pt") as file:
        dimensions = {name: len(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    layers = sorted(name.removesuffix(".lora_A.weight") for name in dimensions if name.endswith(".lora_A.weight"))
    unexpected = {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"} ^ set(dimensions)
    unexpected |= {name for name, count in dimensions.items() if count != 2 or not name.startswith(_PREFIX)}
    if unexpected:
        raise AdapterError(
            f"adapter {part.id}: {min(unexpected)!r} is not a factor of a linear layer, and only those can be merged"
        )
    return [layer.removeprefix(_PREFIX) for layer in layers]


def _load_parts(model: Any, parts: Sequence[MergePart], names: Sequence[str]) -> Any:
    """Load the parts onto a model under these names."""
    from peft import PeftModel

    peft_model: Any = None
    with warnings.catch_warnings():
        # peft 0.21 uses a deprecated name of transformers.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        for part, name in zip(parts, names, strict=True):
            try:
                if peft_model is None:
                    peft_model = PeftModel.from_pretrained(model, str(part.folder), adapter_name=name)
                else:
                    peft_model.load_adapter(str(part.folder), name)
            except RuntimeError as error:
                raise AdapterError(
                    f"adapter {part.id} does not fit the base model ({error}); merge adapters of one base"
                ) from error
    return peft_model


def _prompt_example(runtime: Runtime, renderer: Renderer) -> Example:
    """Return the first tokens of the system prompt as targets; the datasets of the parts may be gone."""
    ids = renderer.message(Message("system", system_text(runtime.frame()))).ids[:256]
    return Example(ids, (True,) * len(ids))


def _hash(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
