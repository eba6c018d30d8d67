"""The record: what a task was, what the agent did about it, and what people said of that.

Plain frozen data with a versioned JSON form. Ids and times are arguments; nothing here reads a clock,
a file or the environment. Reading back a newer version is refused, never guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from agent.errors import RecordError
from tools.context import Passage

RECORD_VERSION = 3
"""3 marks steps whose effect is not known; 2 names the runs that recalled tasks came from and how answers were checked.
1 and 2 are read as well."""


Part = Literal["plan", "thought"]
"""What a step may hold beside its call."""


class Outcome(StrEnum):
    """Why a run ended. A closed set: a run without one is still going, or was cut off and can be resumed."""

    ANSWERED = "answered"
    FAILED = "failed"
    OUT_OF_STEPS = "out_of_steps"
    OUT_OF_TOKENS = "out_of_tokens"
    OUT_OF_TIME = "out_of_time"
    LOOPING = "looping"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    CRASHED = "crashed"

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    Outcome.ANSWERED: "the agent gave its answer",
    Outcome.FAILED: "the model could not produce a step that can be read",
    Outcome.OUT_OF_STEPS: "the budget of steps was used up before an answer",
    Outcome.OUT_OF_TOKENS: "the budget of tokens, or the model's context, was used up before an answer",
    Outcome.OUT_OF_TIME: "the budget of seconds was used up before an answer",
    Outcome.LOOPING: "the same call gave the same result three times",
    Outcome.REFUSED: "the agent declined and handed the task to a person",
    Outcome.CANCELLED: "a person or program stopped the run",
    Outcome.CRASHED: "our own code failed; the error is recorded",
}


@dataclass(frozen=True)
class Task:
    """What the agent is asked."""

    id: str
    text: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the caller knows of the sender and vouches for, such as the signed-in customer's id."""


@dataclass(frozen=True)
class ToolCall:
    """One call of one tool, arguments as JSON."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens of one step."""

    prompt: int = 0
    """All tokens in front of the step, cached or not."""
    cached: int = 0
    """Of `prompt`, those whose keys and values were already there."""
    forced: int = 0
    """Tokens the grammar left no choice about."""
    sampled: int = 0
    guessed: int = 0
    """Of those forced and sampled, how many were guessed beforehand and asked for no pass of their own."""

    @property
    def total(self) -> int:
        return self.prompt - self.cached + self.forced + self.sampled


@dataclass(frozen=True)
class Evidence:
    """A sentence that a run was shown, and where it stands."""

    text: str
    label: int | None = None
    """Of the passage it stands in; None for what a tool said."""
    document: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Checked:
    """A sentence of an answer, held against what the run was shown."""

    text: str
    supported: bool
    score: float
    """How well it is supported, 0 to 1."""
    evidence: tuple[Evidence, ...] = ()
    """What supports it, one sentence or two; empty where nothing does."""


@dataclass(frozen=True)
class Grounding:
    """What came of checking an answer, and what whoever asked is given in its place."""

    mode: Literal["mark", "withhold"]
    sentences: tuple[Checked, ...]
    reply: str
    """What is given: the answer with its unsupported sentences marked, or without them."""

    @property
    def withheld(self) -> tuple[str, ...]:
        """The sentences that were left out."""
        return tuple(one.text for one in self.sentences if self.mode == "withhold" and not one.supported)


@dataclass(frozen=True)
class Step:
    """One act: what the model said, and what came back."""

    call: ToolCall | None
    """None when what the model said could not be read; then `said` has it and `error` says why."""
    observation: str = ""
    thought: str = ""
    plan: tuple[str, ...] = ()
    """Given on the first step and again after a step that failed; empty otherwise."""
    error: str | None = None
    """Set when the tool refused, raised an exception, or the step could not be read; the model is shown this text."""
    notice: str | None = None
    """Said to the model behind the observation, such as that it repeats itself."""
    said: str = ""
    """The raw text of a step that could not be read."""
    token_ids: tuple[int, ...] = ()
    """The ids the model sampled or was forced to, end of turn included; empty for a step it did not say."""
    passages: tuple[Passage, ...] = ()
    """Passages first shown by this step."""
    usage: Usage = Usage()
    model_seconds: float = 0.0
    tool_seconds: float = 0.0
    author: Literal["model", "correction"] = "model"
    grounding: Grounding | None = None
    """Of an answer that was checked; `call` has it as the model gave it."""
    effect_unknown: bool = False
    """Whether a tool that has an effect raised an exception or was interrupted, so that it may have taken effect."""
    context_parts: tuple[Part, ...] = ()
    """Of a corrected step as it is trained: the parts that the model said and the reviewer did not give. They stand in
    front of the call, as they are served, and are no target."""

    @property
    def withheld(self) -> tuple[str, ...]:
        """Sentences of the model's own that whoever asked was not given."""
        return () if self.grounding is None else self.grounding.withheld


@dataclass(frozen=True)
class Recalled:
    """A solved task like this one that the model was shown: what was asked, and how it began."""

    text: str
    """Shortened and without its numbers."""
    tool: str
    """The first tool that was called."""
    plan: tuple[str, ...] = ()
    run: str = ""
    """Where it comes from; empty in records from before this was kept. The model is not shown it."""
    choices: tuple[tuple[str, str], ...] = ()
    """Name and value of each argument of the call that is a choice among texts."""
    share: float = 0.0
    """How likely memory takes the task to begin so, 0 to 1: what the model's own odds are multiplied with. 0 where
    memory only shows."""
    shown: bool = True
    """Whether the prompt has it."""


@dataclass(frozen=True)
class Provenance:
    """What produced a trajectory."""

    base: str = ""
    base_revision: str = ""
    adapter: str | None = None
    adapter_hash: str | None = None
    prompt_version: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Tool name to version, a hash of its schema and description."""
    seed: int = 0
    temperature: float = 0.0
    recalled: tuple[Recalled, ...] = ()
    """The solved tasks it was shown, the one most like its own last."""


@dataclass(frozen=True)
class Branch:
    """Where a run left another: it shares that run's steps before `step`."""

    run: str
    step: int


@dataclass(frozen=True)
class Trajectory:
    """One run, from its task to its outcome."""

    id: str
    task: Task
    provenance: Provenance
    started_at: str
    """ISO 8601, UTC."""
    steps: tuple[Step, ...] = ()
    outcome: Outcome | None = None
    error: str | None = None
    """Our own failure, when `outcome` is crashed."""
    ended_at: str | None = None
    branch: Branch | None = None

    @property
    def answer(self) -> str | None:
        """The answer as whoever asked was given it, or None without one."""
        if self.outcome is not Outcome.ANSWERED or not self.steps or self.steps[-1].call is None:
            return None
        grounding = self.steps[-1].grounding
        if grounding is not None:
            return grounding.reply
        return str(self.steps[-1].call.arguments.get("text", ""))

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Every passage shown in the run, in the order of their labels."""
        return tuple(passage for step in self.steps for passage in step.passages)

    @property
    def citations(self) -> tuple[Passage, ...]:
        """The passages the answer cites, in its order; where some is withheld, those that the rest stands on."""
        if not self.steps or self.steps[-1].call is None:
            return ()
        labels = self.steps[-1].call.arguments.get("citations") or ()
        grounding = self.steps[-1].grounding
        if grounding is not None and grounding.mode == "withhold":
            labels = list(dict.fromkeys(one.label for said in grounding.sentences for one in said.evidence))
        shown = {passage.label: passage for passage in self.passages}
        return tuple(shown[label] for label in labels if label in shown)

    @property
    def tokens(self) -> int:
        return sum(step.usage.total for step in self.steps)

    def with_step(self, step: Step) -> Trajectory:
        return replace(self, steps=(*self.steps, step))


def to_json(trajectory: Trajectory) -> str:
    """One line of JSON; `from_json` gives back an equal trajectory."""
    return json.dumps({"version": RECORD_VERSION, **asdict(trajectory)}, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str) -> Trajectory:
    """Read what `to_json` wrote. Raises RecordError on anything else, a newer version included."""
    try:
        data = json.loads(text)
        version = data.pop("version")
        if version not in range(1, RECORD_VERSION + 1):
            raise RecordError(
                f"record has version {version}, this code reads 1 to {RECORD_VERSION}; upgrade ratchet-loop"
            )
        return trajectory_from_dict(data)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise RecordError(f"not a trajectory record ({fault!r}); expected one JSON object per line") from fault


def trajectory_from_dict(data: Mapping[str, Any]) -> Trajectory:
    outcome, branch = data["outcome"], data["branch"]
    return Trajectory(
        **{
            **data,
            "task": Task(**data["task"]),
            "provenance": _provenance_from_dict(data["provenance"]),
            "steps": tuple(step_from_dict(step) for step in data["steps"]),
            "outcome": None if outcome is None else Outcome(outcome),
            "branch": None if branch is None else Branch(**branch),
        }
    )


def step_to_dict(step: Step) -> dict[str, Any]:
    return asdict(step)


def step_from_dict(data: Mapping[str, Any]) -> Step:
    return Step(
        **{
            **data,
            "call": None if data["call"] is None else ToolCall(**data["call"]),
            "plan": tuple(data["plan"]),
            "token_ids": tuple(data["token_ids"]),
            "passages": tuple(Passage(**passage) for passage in data["passages"]),
            "usage": Usage(**data["usage"]),
            "grounding": _grounding_from_dict(data.get("grounding")),
            "context_parts": tuple(data.get("context_parts", ())),
        }
    )


def _grounding_from_dict(data: Mapping[str, Any] | None) -> Grounding | None:
    if data is None:
        return None
    sentences = tuple(
        Checked(**{**one, "evidence": tuple(Evidence(**shown) for shown in one["evidence"])})
        for one in data["sentences"]
    )
    return Grounding(**{**data, "sentences": sentences})


def _provenance_from_dict(data: Mapping[str, Any]) -> Provenance:
    # Records from before there was recall have none.
    recalled = tuple(
        Recalled(**{**one, "plan": tuple(one["plan"]), "choices": tuple(map(tuple, one.get("choices", ())))})
        for one in data.get("recalled", ())
    )
    return Provenance(**{**data, "recalled": recalled})
