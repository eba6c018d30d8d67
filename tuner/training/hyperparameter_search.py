"""Searches for settings: trains with settings that Optuna draws, and compares held-out losses.

Trials are in a journal, so that the same call continues a search that was killed. The result has the lowest loss on the
held-out runs, which is not success at tasks: the gate decides on that. Source: TPE (Bergstra et al., 2011) and median
pruning (Golovin et al., 2017), both from Optuna.
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

from agent.config.settings import TuningSettings
from agent.errors import DatasetError, TuningError
from agent.util.atomic_files import write_whole

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Drawn

    from tuner.training.results import Progress, Say, Trained

Attempt = Callable[[TuningSettings, Callable[["Progress"], None]], "Trained"]
"""Trains once, on fresh weights, and reports progress; an exception of the callback ends the training."""

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
"""Ranges of the learning rate for methods that need another than the usual one."""

STARTUP = 5
"""Trials that are drawn at random and never pruned."""

FORMAT_VERSION = 1

_JOURNAL = "journal.log"
_ALPHA = "alpha_per_r"
"""Alpha is drawn as a multiple of the rank."""


@dataclass(frozen=True)
class Trial:
    """One training of a search."""

    number: int
    """From 1."""
    state: Literal["trained", "pruned", "failed", "stopped"]
    """Failed: the loss exploded or never fell. Stopped, by time or by a signal: the next call starts it again."""
    settings: Mapping[str, Any]
    """The drawn settings, by the keys of [tuning]; of a stopped trial possibly only some."""
    held_out_loss: float | None
    """The best of its epochs."""
    held_out_losses: Sequence[float]
    seconds: float | None
    reason: str | None
    """Why it failed."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search so far."""

    best: Trial
    as_they_stand: Trial | None
    """The trial of the current settings."""
    trials: Sequence[Trial]
    table: Path
    """best.toml: a [tuning] table with the settings that were searched."""
    listed: Path
    """trials.json: all trials."""


def search(
    attempt: Attempt,
    settings: TuningSettings,
    *,
    searches: Path,
    about: Sequence[str],
    trials: int,
    minutes: float | None = None,
    fixed_shape: bool = False,
    on_progress: Callable[[int, Progress], None] | None = None,
    say: Say = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Search for settings; the first trial is the current ones.

    Args:
        attempt: Trains with given settings.
        settings: The current ones.
        searches: The folder of all searches; one process at a time may use it.
        about: Names data, prompt and base. Searches with the same names and the same fixed settings share their trials.
        trials: Number of trials, those of earlier calls included.
        minutes: Limit of this call.
        fixed_shape: Whether rank and alpha are not searched.
        on_progress: Called with the number of the trial and its progress.
        say: Receives messages for the user.
        clock: Returns seconds.

    Raises:
        TuningError: No trial was completed.
    """
    require_optuna()
    import optuna

    space = _space(settings, fixed_shape=fixed_shape)
    now = _table(_current_values(settings, space), settings)
    folder = searches / _key(about, settings, space)
    study = _open(folder)
    before = len(_trials(study, settings))
    if before < trials and now not in [_table(_drawn_values(trial), settings) for trial in _counted(study)]:
        study.enqueue_trial(_current_values(settings, space))
    begun = clock()
    deadline = None if minutes is None else begun + 60 * minutes
    for number in range(before + 1, trials + 1):
        if deadline is not None and clock() >= deadline:
            break
        study.sampler = optuna.samplers.TPESampler(
            # By number, so that an interrupted search draws the same as an uninterrupted trial.
            seed=(settings.seed + number) % 2**32,
            n_startup_trials=STARTUP,
        )
        trial = study.ask(space)
        table = _table(trial.params, settings)
        # The current settings are the baseline and never pruned.
        watch = _Watch(trial, number, table != now, deadline, clock, on_progress)
        try:
            trained = attempt(replace(settings, **table), watch.on_progress)
            if trained.held_out_loss is None:
                raise DatasetError("nothing is held out, and a search compares held-out losses")
            study.tell(trial, trained.held_out_loss)
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except _TimeIsOverError:
            break  # The next call continues it from the journal.
        except DatasetError:
            raise  # No settings would help.
        except TuningError as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        done = _trials(study, settings)
        left = (clock() - begun) / (number - before) * (trials - number)
        say(_describe(done, trials, left if deadline is None else max(0.0, min(left, deadline - clock()))))
    return _write(folder, _trials(study, settings), settings, now)


def require_optuna() -> None:
    """Raise TuningError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise TuningError(
            'a search needs Optuna, which is not installed; pip install "ratchet-loop[search]"'
        ) from error


class _TimeIsOverError(Exception):
    """The time of the search is over."""


class _Watch:
    """Reports a trial's held-out losses to Optuna, and ends it when it is pruned or time is over."""

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

    def on_progress(self, progress: Progress) -> None:
        import optuna

        if self._on_progress is not None:
            self._on_progress(self._number, progress)
        # A training reports the last step of an epoch twice: after the step, and after the evaluation.
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


def _space(settings: TuningSettings, *, fixed_shape: bool) -> dict[str, BaseDistribution]:
    """Return the search space, which includes the current settings."""
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


def _current_values(settings: TuningSettings, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return the current settings in the form of drawn values."""
    values = {**asdict(settings), _ALPHA: settings.alpha / settings.r}
    return {name: values[name] for name in space}


def _table(drawn: Mapping[str, Any], settings: TuningSettings) -> dict[str, Any]:
    """Return drawn values by the keys of [tuning], rounded to four digits where they differ from the current ones."""
    table: dict[str, Any] = {}
    for name in TuningSettings.__dataclass_fields__:
        if name in drawn:
            value = drawn[name]
            table[name] = value if value == getattr(settings, name) else _rounded(value)
        elif name == "alpha" and _ALPHA in drawn:
            table[name] = max(1, round(drawn["r"] * drawn[_ALPHA]))
    return table


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _key(about: Sequence[str], settings: TuningSettings, space: Mapping[str, BaseDistribution]) -> str:
    """Hash what makes the losses of trials comparable: fixed settings and the ranges of the searched ones."""
    searched = {*_table(_current_values(settings, space), settings), "checkpoint_seconds"}
    rest = {name: value for name, value in asdict(settings).items() if name not in searched}
    parts = [FORMAT_VERSION, *about, rest, {name: repr(distribution) for name, distribution in space.items()}]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _open(folder: Path) -> Study:
    """Open the study in a folder, or create it. Trials that a kill left unfinished are enqueued again."""
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder.resolve() / _JOURNAL
    _repair(journal)
    try:
        study = optuna.create_study(
            study_name="search",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
            direction="minimize",
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise TuningError(f"{journal} cannot be read ({error}); delete it to begin the search anew") from error
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "error" not in trial.user_attrs:
            study.enqueue_trial(_drawn_values(trial))
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _repair(journal: Path) -> None:
    """Delete an incomplete last line, and Optuna's lock, for which it would wait half a minute."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.is_file():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)


def _drawn_values(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values of a trial, drawn or enqueued."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _counted(study: Study) -> Iterator[FrozenTrial]:
    """Yield all trials except those that were stopped and then started again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False):
        if trial.state != TrialState.FAIL or "error" in trial.user_attrs:
            yield trial


def _trials(study: Study, settings: TuningSettings) -> list[Trial]:
    """Return all trials that were started."""
    from optuna.trial import TrialState

    states: dict[TrialState, Literal["trained", "pruned", "failed", "stopped"]] = {
        TrialState.COMPLETE: "trained",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "stopped",
    }
    trials: list[Trial] = []
    for frozen in _counted(study):
        if frozen.state in states:
            losses = [loss for _, loss in sorted(frozen.intermediate_values.items())]
            trial = Trial(
                number=len(trials) + 1,
                state=states[frozen.state],
                settings=_table(_drawn_values(frozen), settings),
                held_out_loss=frozen.value if frozen.state is TrialState.COMPLETE else min(losses, default=None),
                held_out_losses=losses,
                seconds=None if frozen.duration is None else frozen.duration.total_seconds(),
                reason=frozen.user_attrs.get("error"),
            )
            trials.append(trial)
    return trials


def _best(trials: Sequence[Trial]) -> Trial | None:
    trained = [trial for trial in trials if trial.state == "trained"]
    return min(
        trained, key=lambda trial: math.inf if trial.held_out_loss is None else trial.held_out_loss, default=None
    )


def _describe(trials: Sequence[Trial], of: int, seconds_left: float) -> str:
    """Describe the newest trial in a line."""
    newest, best = trials[-1], _best(trials)
    loss = "" if newest.held_out_loss is None else f", held-out loss {newest.held_out_loss:.4f}"
    reason = "" if newest.reason is None else f" ({textwrap.shorten(newest.reason, 80, placeholder=' …')})"
    far = "" if best is None else f"; best {best.held_out_loss:.4f} by trial {best.number}"
    left = f"; {seconds_left / 60:.1f} min left" if newest.number < of else ""
    return f"trial {newest.number}/{of}: {newest.state}{loss}{reason}{far}{left}"


def _write(folder: Path, trials: Sequence[Trial], settings: TuningSettings, now: Mapping[str, Any]) -> SearchResult:
    """Write best.toml and trials.json. Raises TuningError where there is no best."""
    best = _best(trials)
    if best is None:
        counts = ", ".join(
            f"{sum(trial.state == state for trial in trials)} {state}" for state in ("failed", "stopped")
        )
        reasons = [trial.reason for trial in trials if trial.reason]
        last = f"; the last one failed: {reasons[-1]}" if reasons else ""
        raise TuningError(
            f"no trial of the search was completed ({counts}{last}); give it more --minutes or trials, or lower "
            "tuning.learning_rate"
        )
    as_they_stand = next((trial for trial in trials if trial.settings == now and trial.state != "stopped"), None)
    head = (
        f"# Held-out loss {best.held_out_loss:.4f}, trial {best.number} of {len(trials)}. "
        f"The settings as they stood: {_standing(as_they_stand, best)}."
    )
    rows = [f"{name} = {json.dumps(value)}" for name, value in {"method": settings.method, **best.settings}.items()]
    table, listed = folder / "best.toml", folder / "trials.json"
    data = {"version": FORMAT_VERSION, "best": best.number, "trials": [asdict(trial) for trial in trials]}
    for path, text in (
        (listed, json.dumps(data, indent=1, ensure_ascii=False)),
        (table, "\n".join([head, "[tuning]", *rows]) + "\n"),
    ):
        write_whole(path, text)
    return SearchResult(best, as_they_stand, tuple(trials), table, listed)


def _standing(trial: Trial | None, best: Trial) -> str:
    if trial is None:
        return "not tried"
    if trial == best:
        return "the same"
    return trial.state if trial.state == "failed" else f"{trial.held_out_loss:.4f}"
