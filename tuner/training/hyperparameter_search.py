"""Searches for settings: trains time and again with what Optuna draws, and keeps what the held-out loss became.

Every trial is in a journal as it goes on, so that a search that was killed is gone on with by the same call. What is
found is best for the loss on the held-out runs, which is not yet success at tasks: the gate decides on that.
Source: TPE (Bergstra et al., 2011) and median pruning (Golovin et al., 2017), both as Optuna has them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agent.errors import DatasetError, TuningError
from agent.util.atomic_files import write_whole
from tuner.settings import TrainSettings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Drawn

    from tuner.training.results import Progress, Say, Trained

Attempt = Callable[[TrainSettings, Callable[["Progress"], None]], "Trained"]
"""Trains once, on fresh weights, and tells of its progress; what is raised at that comes out of it."""

RANKED = frozenset({"lora", "rslora", "dora", "lora+", "qlora"})
"""Methods whose adapters have a rank."""

USUAL_RATES = (1e-4, 4e-3)
RATES: Mapping[str, tuple[float, float]] = {
    "rslora": (3e-5, 2e-3),  # Its output is sqrt(r) times as large.
    "lora+": (2e-5, 1e-3),  # The second matrix has `rate_ratio` times the rate.
    "full": (2e-6, 2e-4),
    "prompt": (1e-3, 3e-1),
    "prefix": (1e-3, 1e-1),
}
"""The learning rates that are searched, where others than the usual ones make sense."""

STARTUP = 5
"""Trials that are drawn at random, and of which none is cut short."""

FORMAT_VERSION = 1

_JOURNAL = "journal.log"
_ALPHA = "alpha_per_r"
"""What is drawn for alpha: how many times the rank."""


@dataclass(frozen=True)
class Trial:
    """One training of a search."""

    number: int
    """From 1."""
    state: Literal["trained", "pruned", "failed", "stopped"]
    """Failed: the loss exploded or never fell. Stopped, by time or from outside: begun again by the next call."""
    settings: Mapping[str, Any]
    """What was drawn, by the keys of [tuning]; of a stopped one maybe a part."""
    held_out_loss: float | None
    """The best of its epochs."""
    held_out_losses: Sequence[float]
    seconds: float | None
    reason: str | None
    """Why it failed."""


@dataclass(frozen=True)
class Found:
    """What a search found so far."""

    best: Trial
    as_they_stand: Trial | None
    """The trial of the settings as they stand now."""
    trials: Sequence[Trial]
    table: Path
    """best.toml: a [tuning] table with every setting that was searched."""
    listed: Path
    """trials.json: all trials."""


def search(
    attempt: Attempt,
    settings: TrainSettings,
    *,
    searches: Path,
    about: Sequence[str],
    trials: int,
    minutes: float | None = None,
    fixed_shape: bool = False,
    on_progress: Callable[[int, Progress], None] | None = None,
    say: Say = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Try settings until `trials` are done, those of earlier calls included, or for `minutes` of this call.

    `about` names the data, prompt and base: the same ones, with the same of the settings that are not searched, share
    a folder below `searches` and go on with each other's trials. One process at a time may search there. The first
    trial is `settings`. With `fixed_shape` rank and alpha are not searched. Raises TuningError where no trial came to
    its end.
    """
    require_optuna()
    import optuna

    space = _space(settings, fixed_shape=fixed_shape)
    now = _table(_as_asked(settings, space), settings)
    folder = searches / _key(about, settings, space)
    study = _open(folder)
    before = len(_trials(study, settings))
    if before < trials and now not in [_table(_asked(one), settings) for one in _counted(study)]:
        study.enqueue_trial(_as_asked(settings, space))
    begun = clock()
    deadline = None if minutes is None else begun + 60 * minutes
    for number in range(before + 1, trials + 1):
        if deadline is not None and clock() >= deadline:
            break
        study.sampler = optuna.samplers.TPESampler(
            # By number, so that a search that was interrupted draws what one that was not draws.
            seed=(settings.seed + number) % 2**32,
            n_startup_trials=STARTUP,
        )
        trial = study.ask(space)
        table = _table(trial.params, settings)
        # The settings as they stand are what all else is compared to, and never pruned.
        watch = _Watch(trial, number, table != now, deadline, clock, on_progress)
        try:
            trained = attempt(replace(settings, **table), watch.heard)
            if trained.held_out_loss is None:
                raise DatasetError("nothing is held out, and a search compares held-out losses")
            study.tell(trial, trained.held_out_loss)
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except _TimeIsOverError:
            break  # Left as it stands in the journal: the next call takes it up.
        except DatasetError:
            raise  # No settings could mend that.
        except TuningError as fault:
            trial.set_user_attr("error", str(fault))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        done = _trials(study, settings)
        left = (clock() - begun) / (number - before) * (trials - number)
        say(_told(done, trials, left if deadline is None else max(0.0, min(left, deadline - clock()))))
    return _write(folder, _trials(study, settings), settings, now)


def require_optuna() -> None:
    """Raise TuningError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as fault:
        raise TuningError(
            'a search needs Optuna, which is not installed; pip install "ratchet-loop[search]"'
        ) from fault


class _TimeIsOverError(Exception):
    """The minutes of the search are used up."""


class _Watch:
    """Reports a trial's held-out losses, and ends it where it is hopeless or time is over."""

    def __init__(
        self,
        trial: Drawn,
        number: int,
        may_be_pruned: bool,
        deadline: float | None,
        clock: Callable[[], float],
        on_progress: Callable[[int, Progress], None] | None,
    ) -> None:
        self._trial = trial
        self._number = number
        self._may_be_pruned = may_be_pruned
        self._deadline = deadline
        self._clock = clock
        self._on_progress = on_progress
        self._step = 0

    def heard(self, progress: Progress) -> None:
        import optuna

        if self._on_progress is not None:
            self._on_progress(self._number, progress)
        # A training tells of the last step of an epoch twice: then, and when the epoch was evaluated.
        evaluated = progress.step == self._step
        self._step = progress.step
        if evaluated and progress.held_out_loss is not None:
            self._trial.report(progress.held_out_loss, progress.epoch)
        if evaluated and progress.step == progress.steps:
            return
        if self._deadline is not None and self._clock() >= self._deadline:
            raise _TimeIsOverError
        if evaluated and self._may_be_pruned and self._trial.should_prune():
            raise optuna.TrialPruned


def _space(settings: TrainSettings, *, fixed_shape: bool) -> dict[str, BaseDistribution]:
    """What is searched, wide enough for the settings as they stand."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def share(now: float) -> FloatDistribution:
        return FloatDistribution(0.0, max(0.1, now))

    slowest, fastest = RATES.get(settings.method, USUAL_RATES)
    rate, least = settings.learning_rate, settings.batch_targets
    space: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(min(slowest, rate), max(fastest, rate), log=True),
        "epochs": IntDistribution(1, max(8, settings.epochs)),
        "batch_targets": IntDistribution(min(60, least), max(400, least), log=True),
        "label_smoothing": share(settings.label_smoothing),
        "weight_decay": share(settings.weight_decay),
        "schedule": CategoricalDistribution(("cosine", "linear", "constant")),
    }
    if settings.method in RANKED:
        space["dropout"] = share(settings.dropout)
        if not fixed_shape:
            space["r"] = CategoricalDistribution(sorted({4, 8, 16, 32, settings.r}))
            space[_ALPHA] = CategoricalDistribution(sorted({1.0, 2.0, 4.0, settings.alpha / settings.r}))
    return space


def _as_asked(settings: TrainSettings, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The settings as they stand, as if they were drawn."""
    known = {**asdict(settings), _ALPHA: settings.alpha / settings.r}
    return {name: known[name] for name in space}


def _table(asked: Mapping[str, Any], settings: TrainSettings) -> dict[str, Any]:
    """The keys of [tuning] that were drawn. Numbers have four digits, unless they are as they stand."""
    table: dict[str, Any] = {}
    for name in TrainSettings.__dataclass_fields__:
        if name in asked:
            value = asked[name]
            table[name] = value if value == getattr(settings, name) else _rounded(value)
        elif name == "alpha" and _ALPHA in asked:
            table[name] = max(1, round(asked["r"] * asked[_ALPHA]))
    return table


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _key(about: Sequence[str], settings: TrainSettings, space: Mapping[str, BaseDistribution]) -> str:
    """Names what makes the losses of trials comparable; what is searched is not among it, its ranges are."""
    searched = {*_table(_as_asked(settings, space), settings), "checkpoint_seconds"}
    rest = {name: value for name, value in asdict(settings).items() if name not in searched}
    parts = [FORMAT_VERSION, *about, rest, {name: repr(one) for name, one in space.items()}]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _open(folder: Path) -> Study:
    """The study in this folder, old or new. What a kill left unfinished in it is to be tried again."""
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder.resolve() / _JOURNAL
    _mend(journal)
    try:
        study = optuna.create_study(
            study_name="search",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
            direction="minimize",
            load_if_exists=True,
        )
    except (ValueError, KeyError) as fault:
        raise TuningError(f"{journal} cannot be read ({fault}); delete it to begin the search anew") from fault
    for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "error" not in one.user_attrs:
            study.enqueue_trial(_asked(one))
        study.tell(one.number, state=TrialState.FAIL)
    return study


def _mend(journal: Path) -> None:
    """Drop a line that a kill cut short, and Optuna's lock, which it would wait for half a minute."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.is_file():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)


def _asked(trial: FrozenTrial) -> dict[str, Any]:
    """What was drawn, and what was to be tried."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _counted(study: Study) -> Iterator[FrozenTrial]:
    """All trials but those that were stopped and then begun again."""
    from optuna.trial import TrialState

    for one in study.get_trials(deepcopy=False):
        if one.state != TrialState.FAIL or "error" in one.user_attrs:
            yield one


def _trials(study: Study, settings: TrainSettings) -> list[Trial]:
    """All trials that were begun."""
    from optuna.trial import TrialState

    states: dict[TrialState, Literal["trained", "pruned", "failed", "stopped"]] = {
        TrialState.COMPLETE: "trained",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "stopped",
    }
    trials: list[Trial] = []
    for one in _counted(study):
        if one.state in states:
            losses = [loss for _, loss in sorted(one.intermediate_values.items())]
            trial = Trial(
                number=len(trials) + 1,
                state=states[one.state],
                settings=_table(_asked(one), settings),
                held_out_loss=one.value if one.state is TrialState.COMPLETE else min(losses, default=None),
                held_out_losses=losses,
                seconds=None if one.duration is None else one.duration.total_seconds(),
                reason=one.user_attrs.get("error"),
            )
            trials.append(trial)
    return trials


def _best(trials: Sequence[Trial]) -> Trial | None:
    trained = [one for one in trials if one.state == "trained"]
    return min(trained, key=lambda one: math.inf if one.held_out_loss is None else one.held_out_loss, default=None)


def _told(trials: Sequence[Trial], of: int, seconds_left: float) -> str:
    """The newest trial in a line."""
    newest, best = trials[-1], _best(trials)
    loss = "" if newest.held_out_loss is None else f", held-out loss {newest.held_out_loss:.4f}"
    reason = "" if newest.reason is None else f" ({textwrap.shorten(newest.reason, 80, placeholder=' …')})"
    far = "" if best is None else f"; best {best.held_out_loss:.4f} by trial {best.number}"
    left = f"; {seconds_left / 60:.1f} min left" if newest.number < of else ""
    return f"trial {newest.number}/{of}: {newest.state}{loss}{reason}{far}{left}"


def _write(folder: Path, trials: Sequence[Trial], settings: TrainSettings, now: Mapping[str, Any]) -> Found:
    """Write best.toml and trials.json. Raises TuningError where there is no best."""
    best = _best(trials)
    if best is None:
        counts = ", ".join(f"{sum(one.state == state for one in trials)} {state}" for state in ("failed", "stopped"))
        reasons = [one.reason for one in trials if one.reason]
        last = f"; the last one failed: {reasons[-1]}" if reasons else ""
        raise TuningError(
            f"no trial of the search came to its end ({counts}{last}); give it more --minutes or trials, or lower "
            "tuning.learning_rate"
        )
    as_they_stand = next((one for one in trials if one.settings == now and one.state != "stopped"), None)
    head = (
        f"# Held-out loss {best.held_out_loss:.4f}, trial {best.number} of {len(trials)}. "
        f"The settings as they stood: {_standing(as_they_stand, best)}."
    )
    rows = [f"{name} = {json.dumps(value)}" for name, value in {"method": settings.method, **best.settings}.items()]
    table, listed = folder / "best.toml", folder / "trials.json"
    data = {"version": FORMAT_VERSION, "best": best.number, "trials": [asdict(one) for one in trials]}
    for path, text in (
        (listed, json.dumps(data, indent=1, ensure_ascii=False)),
        (table, "\n".join([head, "[tuning]", *rows]) + "\n"),
    ):
        write_whole(path, text)
    return Found(best, as_they_stand, tuple(trials), table, listed)


def _standing(trial: Trial | None, best: Trial) -> str:
    if trial is None:
        return "not tried"
    if trial == best:
        return "the same"
    return trial.state if trial.state == "failed" else f"{trial.held_out_loss:.4f}"
