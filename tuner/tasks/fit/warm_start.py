"""A training that goes on from an earlier one: its encoder, and the rows of its head for the labels that are the same.

Continual learning: the same task with new examples, a share of the older ones among them (experience replay, Rolnick et
al., 2019). Transfer: another task, or the same with other labels, from the encoder that the earlier one left; where
texts are classified from a place on the way there, if that is nearer to both (Wortsman et al., "Robust fine-tuning of
zero-shot models", 2022).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agent.errors import AdapterError, DatasetError
from agent.registry.artifact import WEIGHTS, Manifest, verify
from tuner.tasks.data.records import TaskName, key, label_of
from tuner.tasks.data.schemes import OUTSIDE
from tuner.tasks.data.splits import Splits, stratified
from tuner.tasks.head.ngrams import NgramModel

if TYPE_CHECKING:
    import torch

    from agent.llm.weights.load import ModelFolder
    from tuner.tasks.head.model import TaskModel
    from tuner.tasks.head.tasks import Task

KEPT = ("method", "r", "alpha", "frozen_layers", "max_tokens")
"""Settings that are the earlier training's where none are given: its tensors fit no others, or were made with them."""
REPLAYED = 0.2
"""Share of the older examples that are learnt again."""
WAYS = (0.0, 0.25, 0.5, 1.0)
"""How far towards the earlier encoder a classification by other labels may begin. All the way it tells texts apart by
what mattered before, and is often worse than one that never went there; measured in `docs/lab.md`."""
TRIED = 2000
"""Texts by which that is chosen, at most."""


@dataclass(frozen=True)
class Start:
    """An earlier training, verified."""

    folder: Path
    manifest: Manifest
    told: Mapping[str, Any]
    """Its `task.json`."""

    @property
    def task(self) -> str:
        return str(self.told["task"])

    def goes_on(self, task: Named) -> bool:
        """Whether a task is the earlier one with more to learn: of its kind, and by some of its labels if it has any.

        That nothing is there counts for no label: all taggings share it.
        """
        labels = set(task.labels) - {OUTSIDE}
        return task.name == self.task and (not labels or not labels.isdisjoint(self.told["labels"]))

    def settings(self, given: Mapping[str, Any], task: Task) -> dict[str, Any]:
        """What was given, and of the rest what must be as it was. A head that is kept is not fitted anew first."""
        earlier = {name: self.told["settings"][name] for name in KEPT if name in self.told["settings"]}
        if given.get("method") not in (None, earlier.get("method")) or earlier.get("method") == "head":
            # Where the encoder was left as it is, any method goes on from it.
            earlier = {}
        chosen = {name: value for name, value in given.items() if value is not None}
        if 2 * len(_known_rows(task, self)) >= task.outputs:
            return {"head_first": False, "head_last": False, **earlier, **chosen}
        return {**earlier, **chosen}

    def check_base(self, base: ModelFolder) -> None:
        """Raises AdapterError where what is trained now lies on another base."""
        if base.revision != self.manifest.base_revision:
            raise AdapterError(
                f"{self.folder} was trained on {self.manifest.base} ({self.manifest.base_revision[:12]}), this is "
                f"{base.name} ({base.revision[:12]}); leave out --model, or train without --from"
            )


def open_start(folder: Path) -> Start:
    """Raises AdapterError where the folder is none of a trained task, or not whole."""
    from tuner.tasks.artifact import read_task

    return Start(folder, verify(folder), read_task(folder))


class Named(Protocol):
    """What a task on an encoder and one of the language model have in common."""

    @property
    def name(self) -> TaskName: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def options(self) -> dict[str, Any]: ...


AnyTask = TypeVar("AnyTask", bound=Named)


def continued(
    task: AnyTask, start: Start | None, make: Callable[[str, Sequence[str], Mapping[str, Any]], AnyTask]
) -> AnyTask:
    """A task that goes on, made anew, with the labels that it knew before the new ones; another as it is.

    Raises DatasetError where one has several labels a text and the other has one.
    """
    if start is None or not start.goes_on(task):
        return task
    options, before = task.options(), start.told["options"]
    if bool(options.get("multi")) != bool(before.get("multi")):
        several = "several labels" if before.get("multi") else "one label"
        raise DatasetError(f"{start.folder} gives a text {several}; train without --from, or with data of that kind")
    return make(task.name, tuple(dict.fromkeys([*start.told["labels"], *task.labels])), options)


def begin(model: TaskModel | NgramModel, start: Start, base: ModelFolder, examples: Sequence[Any]) -> str:
    """Put the earlier tensors into a fresh model that is to learn these examples. Returns what it began with, in words.

    Raises AdapterError where it is on another base, or its method cannot go on from them.
    """
    from safetensors.torch import load_file

    from tuner.tasks.head.model import HEAD

    if isinstance(model, NgramModel) or start.told["settings"]["method"] == "ngrams":
        raise DatasetError(
            f"{start.folder} goes into no training by method {model.settings.method}, for one of both has no encoder; "
            "train on the examples of both together, without --from"
        )
    start.check_base(base)
    before, now = load_file(start.folder / WEIGHTS), model.state()
    encoder = {name: one for name, one in before.items() if not name.startswith(HEAD)}
    wrong = [name for name, one in encoder.items() if name not in now or now[name].shape != one.shape]
    if wrong:
        raise AdapterError(
            f"{start.folder} was trained by method {start.told['settings'].get('method', 'lora')}, and {len(wrong)} of "
            f"its tensors have no place in one of method {model.settings.method}; leave out --method and --freeze, or "
            "train without --from"
        )
    single = model.task.name == start.task == "classify" and not model.task.options()["multi"]
    if single and not start.goes_on(model.task):
        share = _chosen_way(model, now, encoder, examples)
        return f", {share:.0%} of the way to its encoder, which tells these texts apart best, and with a new head"
    rows = _known_rows(model.task, start)
    model.load_state({**now, **encoder, **_head(before, now, rows)})
    if not model.task.outputs:
        return ""
    return f", of whose head {len(rows)} of {model.task.outputs} outputs stay" if rows else ", with a new head"


def replayed(splits: Splits, older: Sequence[Any], share: float, seed: int) -> Splits:
    """The training examples with a share of older ones, drawn by class; those in validation or test stay out."""
    if not 0 < share <= 1:
        raise DatasetError(f"the share of older examples is {share}; expected more than 0 and at most 1")
    apart = {key(one) for one in (*splits.train, *splits.validation, *splits.test)}
    fresh = [one for one in older if key(one) not in apart]
    chosen = fresh if share == 1 else stratified(fresh, share, seed)[1]
    if not chosen:
        raise DatasetError(f"of {len(older)} older examples none is left to learn again; give more, or a larger share")
    told = f"{len(chosen)} of {len(older)} older examples are learnt again"
    unseen = {label_of(one) for one in fresh} - {label_of(one) for one in chosen}
    told += f"; of {len(unseen)} of their classes there is none among them" if unseen else ""
    return replace(splits, train=[*splits.train, *chosen], notes=(*splits.notes, told))


def _chosen_way(
    model: TaskModel, now: Mapping[str, torch.Tensor], earlier: Mapping[str, torch.Tensor], examples: Sequence[Any]
) -> float:
    """Leave the model at the place on the way from where heads tell the examples apart best, and return its share."""
    from tuner.tasks.head.label_names import named_windows
    from tuner.tasks.head.linear_probe import best_of_folds

    some = random.Random(model.settings.seed).sample(list(examples), min(TRIED, len(examples)))
    windows = model.task.windows(some, model.tokenizer, model.settings.max_tokens)
    best, chosen = -1.0, 0.0
    for share in WAYS:
        model.load_state({**now, **_on_the_way(now, earlier, share)})
        names = named_windows(model, some)[0] if model.settings.label_names else []
        right = best_of_folds(model, [*windows, *names])
        if right > best:
            best, chosen = right, share
    model.load_state({**now, **_on_the_way(now, earlier, chosen)})
    return chosen


def _on_the_way(
    now: Mapping[str, torch.Tensor], earlier: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """The encoder's tensors a share of the way to the earlier ones; a LoRA adapter moves by one of its two factors."""
    return {
        name: one if "lora_A" in name else now[name].lerp(one.to(now[name].device), share)
        for name, one in earlier.items()
    }


def _known_rows(task: Named, start: Start) -> list[tuple[int, int]]:
    """Which output of the head was which output of the earlier one; none for a task that it does not go on with."""
    if not start.goes_on(task):
        return []
    places = {label: place for place, label in enumerate(start.told["labels"])}
    return [(place, places[label]) for place, label in enumerate(task.labels) if label in places]


def _head(
    before: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor], rows: Sequence[tuple[int, int]]
) -> dict[str, torch.Tensor]:
    from tuner.tasks.head.model import HEAD

    made = {name: one.clone() for name, one in now.items() if name.startswith(HEAD)}
    for name, one in made.items():
        for place, earlier in rows:
            one[place] = before[name][earlier]
    return made
