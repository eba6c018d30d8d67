"""Continues an earlier training: from its encoder, and from its head's outputs for the labels that are the same.

Continual learning: the same task with new examples, and a share of the older ones among them (experience replay,
Rolnick et al., 2019). Transfer: another task, or the same with other labels, from the encoder of the earlier training;
a classification starts from an interpolation towards that encoder, if that is better (Wortsman et al., "Robust
fine-tuning of zero-shot models", 2022).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agent.errors import AdapterError, DatasetError
from agent.registry.artifact import WEIGHTS, Manifest, verify
from tuner.tasks.data.records import TaskName, example_key, label_key
from tuner.tasks.data.schemes import OUTSIDE
from tuner.tasks.data.splits import Splits, stratified_split
from tuner.tasks.head.ngrams import NgramModel

if TYPE_CHECKING:
    import torch

    from agent.llm.weights.load import ModelFolder
    from tuner.tasks.head.model import TaskModel
    from tuner.tasks.head.tasks import HeadTask

INHERITED = ("method", "r", "alpha", "frozen_layers", "max_tokens")
"""Settings of the earlier training that are kept where none are given, so that its tensors fit."""
REPLAY_SHARE = 0.2
"""Share of the older examples that are learnt again."""
INTERPOLATIONS = (0.0, 0.25, 0.5, 1.0)
"""Shares of the way to the earlier encoder from which a classification with other labels may start. The whole way keeps
what told the earlier labels apart, and is often worse than no continuation; measured in `docs/lab/`."""
MAX_PROBED = 2000
"""Texts by which the interpolation is chosen, at most."""


@dataclass(frozen=True)
class WarmStart:
    """An earlier training, verified."""

    folder: Path
    manifest: Manifest
    metadata: Mapping[str, Any]
    """Its `task.json`."""

    @property
    def task(self) -> str:
        return str(self.metadata["task"])

    def continues(self, task: LabelledTask) -> bool:
        """Whether a task is the earlier one with more to learn: of the same kind, and with some of its labels.

        The tag O does not count, since all taggings share it; tasks without labels need only be of the same kind.
        """
        labels = set(task.labels) - {OUTSIDE}
        return task.name == self.task and (not labels or not labels.isdisjoint(self.metadata["labels"]))

    def settings(self, given: Mapping[str, Any], task: HeadTask) -> dict[str, Any]:
        """Return the given settings, completed by the earlier ones; a head that is continued is not fitted first."""
        earlier = {name: self.metadata["settings"][name] for name in INHERITED if name in self.metadata["settings"]}
        if given.get("method") not in (None, earlier.get("method")) or earlier.get("method") == "head":
            # Where the encoder was not trained, any method can continue.
            earlier = {}
        explicit = {name: value for name, value in given.items() if value is not None}
        if 2 * len(_shared_outputs(task, self)) >= task.outputs:
            return {"head_first": False, "head_last": False, **earlier, **explicit}
        return {**earlier, **explicit}

    def check_base(self, base: ModelFolder) -> None:
        """Raise AdapterError where the training is on another base."""
        if base.revision != self.manifest.base_revision:
            raise AdapterError(
                f"{self.folder} was trained on {self.manifest.base} ({self.manifest.base_revision[:12]}), this is "
                f"{base.name} ({base.revision[:12]}); leave out --model, or train without --from"
            )


def open_warm_start(folder: Path) -> WarmStart:
    """Open the folder of an earlier training. Raises AdapterError for another folder, or one that is not whole."""
    from tuner.tasks.artifact import read_task

    return WarmStart(folder, verify(folder), read_task(folder))


class LabelledTask(Protocol):
    """The parts that a task with a head and a prompt of a language model share."""

    @property
    def name(self) -> TaskName: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def options(self) -> dict[str, Any]: ...


AnyTask = TypeVar("AnyTask", bound=LabelledTask)


def continue_task(
    task: AnyTask, start: WarmStart | None, make: Callable[[str, Sequence[str], Mapping[str, Any]], AnyTask]
) -> AnyTask:
    """Return the task with the labels of the training it continues in front of its own; another task as it is.

    Args:
        make: Makes a task from name, labels and options.

    Raises:
        DatasetError: Only one of both has several labels per text.
    """
    if start is None or not start.continues(task):
        return task
    options, earlier = task.options(), start.metadata["options"]
    if bool(options.get("multi")) != bool(earlier.get("multi")):
        kind = "several labels" if earlier.get("multi") else "one label"
        raise DatasetError(f"{start.folder} gives a text {kind}; train without --from, or with data of that kind")
    return make(task.name, tuple(dict.fromkeys([*start.metadata["labels"], *task.labels])), options)


def load_earlier_weights(
    model: TaskModel | NgramModel, start: WarmStart, base: ModelFolder, examples: Sequence[Any]
) -> str:
    """Load the earlier tensors into a fresh model.

    Args:
        examples: Training examples; a classification with other labels chooses the interpolation by them.

    Returns:
        What was loaded, as the end of a message.

    Raises:
        AdapterError: The earlier training is on another base, or its method does not fit.
        DatasetError: One of both uses n-grams.
    """
    from safetensors.torch import load_file

    from tuner.tasks.head.model import HEAD

    if isinstance(model, NgramModel) or start.metadata["settings"]["method"] == "ngrams":
        raise DatasetError(
            f"{start.folder} cannot be continued by method {model.settings.method}, for one of both has no encoder; "
            "train on the examples of both together, without --from"
        )
    start.check_base(base)
    earlier, fresh = load_file(start.folder / WEIGHTS), model.state()
    encoder = {name: tensor for name, tensor in earlier.items() if not name.startswith(HEAD)}
    wrong = [name for name, tensor in encoder.items() if name not in fresh or fresh[name].shape != tensor.shape]
    if wrong:
        raise AdapterError(
            f"{start.folder} was trained by method {start.metadata['settings'].get('method', 'lora')}, and "
            f"{len(wrong)} of its tensors do not fit method {model.settings.method}; leave out --method and --freeze, "
            "or train without --from"
        )
    is_single_label = model.task.name == start.task == "classify" and not model.task.options()["multi"]
    if is_single_label and not start.continues(model.task):
        share = _load_best_interpolation(model, fresh, encoder, examples)
        return f", {share:.0%} of the way to its encoder, where heads classify these texts best, with a new head"
    outputs = _shared_outputs(model.task, start)
    model.load_state({**fresh, **encoder, **_continued_head(earlier, fresh, outputs)})
    if not model.task.outputs:
        return ""
    return f", with {len(outputs)} of {model.task.outputs} outputs of its head" if outputs else ", with a new head"


def add_replay(splits: Splits, older: Sequence[Any], share: float, seed: int) -> Splits:
    """Add a share of older examples, drawn by class, to the training examples.

    Args:
        share: Above 0, up to 1. Examples that any split has already are not drawn.

    Raises:
        DatasetError: The share is out of range, or nothing is left to draw.
    """
    if not 0 < share <= 1:
        raise DatasetError(f"the share of older examples is {share}; expected more than 0 and at most 1")
    present = {example_key(example) for example in (*splits.train, *splits.validation, *splits.test)}
    fresh = [example for example in older if example_key(example) not in present]
    drawn = fresh if share == 1 else stratified_split(fresh, share, seed)[1]
    if not drawn:
        raise DatasetError(f"of {len(older)} older examples none is left to learn again; give more, or a larger share")
    note = f"{len(drawn)} of {len(older)} older examples are learnt again"
    missing = {label_key(example) for example in fresh} - {label_key(example) for example in drawn}
    note += f"; of {len(missing)} of their classes there is none among them" if missing else ""
    return replace(splits, train=[*splits.train, *drawn], notes=(*splits.notes, note))


def _load_best_interpolation(
    model: TaskModel, fresh: Mapping[str, torch.Tensor], earlier: Mapping[str, torch.Tensor], examples: Sequence[Any]
) -> float:
    """Load the interpolation of encoders whose heads classify the examples best, and return its share."""
    from tuner.tasks.head.label_names import label_name_windows
    from tuner.tasks.head.linear_probe import cross_validated_accuracy

    sample = random.Random(model.settings.seed).sample(list(examples), min(MAX_PROBED, len(examples)))
    windows = model.task.windows(sample, model.tokenizer, model.settings.max_tokens)
    best, best_share = -1.0, 0.0
    for share in INTERPOLATIONS:
        model.load_state({**fresh, **_interpolate(fresh, earlier, share)})
        names = label_name_windows(model, sample)[0] if model.settings.label_names else []
        accuracy = cross_validated_accuracy(model, [*windows, *names])
        if accuracy > best:
            best, best_share = accuracy, share
    model.load_state({**fresh, **_interpolate(fresh, earlier, best_share)})
    return best_share


def _interpolate(
    fresh: Mapping[str, torch.Tensor], earlier: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """The encoder's tensors a share of the way to the earlier ones; of a LoRA adapter only the factor B moves."""
    return {
        name: tensor if "lora_A" in name else fresh[name].lerp(tensor.to(fresh[name].device), share)
        for name, tensor in earlier.items()
    }


def _shared_outputs(task: LabelledTask, start: WarmStart) -> list[tuple[int, int]]:
    """The outputs of the head with the same output of the earlier head; none for a task that it does not continue."""
    if not start.continues(task):
        return []
    places = {label: place for place, label in enumerate(start.metadata["labels"])}
    return [(place, places[label]) for place, label in enumerate(task.labels) if label in places]


def _continued_head(
    earlier: Mapping[str, torch.Tensor], fresh: Mapping[str, torch.Tensor], outputs: Sequence[tuple[int, int]]
) -> dict[str, torch.Tensor]:
    from tuner.tasks.head.model import HEAD

    head = {name: tensor.clone() for name, tensor in fresh.items() if name.startswith(HEAD)}
    for name, tensor in head.items():
        for place, earlier_place in outputs:
            tensor[place] = earlier[name][earlier_place]
    return head
