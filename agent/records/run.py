"""The record of a run: its task, its steps, what produced it, and its outcome.

Frozen data with a versioned JSON form. Ids and times are arguments. A record of a newer version is not read.
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
"""Version 2 added the runs of recalled tasks and the check of answers, 3 steps with an unknown effect; all are read."""


Part = Literal["plan", "thought"]
"""A part of a step besides its call."""


class Outcome(StrEnum):
    """Why a run ended. A run without an outcome is in progress, or was interrupted and can be resumed."""

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
        """The outcome in words."""
        return _MEANINGS[self]


_MEANINGS = {
    Outcome.ANSWERED: "the agent gave its answer",
    Outcome.FAILED: "the model could not produce a step that can be read",
    Outcome.OUT_OF_STEPS: "the budget of steps was used up before an answer",
    Outcome.OUT_OF_TOKENS: "the budget of tokens, or the model's context, was used up before an answer",
    Outcome.OUT_OF_TIME: "the budget of seconds was used up before an answer",
    Outcome.LOOPING: "the same call gave the same result three times",
    Outcome.REFUSED: "the agent escalated the task to a person",
    Outcome.CANCELLED: "a person or program stopped the run",
    Outcome.CRASHED: "our own code failed; the error is recorded",
}


@dataclass(frozen=True)
class Task:
    """A request to the agent."""

    id: str
    text: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """The task context: what the caller knows and vouches for, such as the id of the signed-in customer."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, with JSON arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Usage:
    """Token counts of a step."""

    prompt: int = 0
    """All tokens before the step, cached or not."""
    cached: int = 0
    """Of `prompt`, those whose keys and values were cached."""
    forced: int = 0
    """Tokens that were the only ones the grammar admits."""
    sampled: int = 0
    guessed: int = 0
    """Of those forced and sampled, accepted draft tokens, which took no pass of their own."""

    @property
    def total(self) -> int:
        return self.prompt - self.cached + self.forced + self.sampled


@dataclass(frozen=True)
class Evidence:
    """A sentence of the run's observations, and where it stands."""

    text: str
    label: int | None = None
    """Label of the passage it stands in; None for another result of a tool."""
    document: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Checked:
    """A sentence of an answer, checked against the run's observations."""

    text: str
    supported: bool
    score: float
    """How well it is supported, 0 to 1."""
    evidence: tuple[Evidence, ...] = ()
    """One or two sentences that support it; empty where none does."""


@dataclass(frozen=True)
class Grounding:
    """The result of checking an answer, and the reply that the caller gets."""

    mode: Literal["mark", "withhold"]
    sentences: tuple[Checked, ...]
    reply: str
    """The answer with its unsupported sentences marked, or without them."""

    @property
    def withheld(self) -> tuple[str, ...]:
        """The sentences that the reply leaves out."""
        return tuple(one.text for one in self.sentences if self.mode == "withhold" and not one.supported)


@dataclass(frozen=True)
class Step:
    """What the model generated, and the observation that followed."""

    call: ToolCall | None
    """None when the output could not be parsed; then `said` has the output and `error` the reason."""
    observation: str = ""
    thought: str = ""
    plan: tuple[str, ...] = ()
    """Generated for the first step and again after a step that failed; empty otherwise."""
    error: str | None = None
    """Set when the tool refused the call or raised an exception, or the step could not be parsed; the model gets it."""
    notice: str | None = None
    """For the model, after the observation: for example that it repeats itself."""
    said: str = ""
    """The output of a step that could not be parsed."""
    token_ids: tuple[int, ...] = ()
    """Of the model's output, end of turn included; empty for a step that the model did not generate."""
    passages: tuple[Passage, ...] = ()
    """Passages that this step was the first to find."""
    usage: Usage = Usage()
    model_seconds: float = 0.0
    tool_seconds: float = 0.0
    author: Literal["model", "correction"] = "model"
    grounding: Grounding | None = None
    """Set for an answer that was checked; `call` has the answer as the model generated it."""
    effect_unknown: bool = False
    """Whether a tool with an effect raised an exception or was interrupted, so that it may have taken effect."""
    context_parts: tuple[Part, ...] = ()
    """In a corrected step that is trained: the parts that the reviewer did not give. They are context, not targets."""

    @property
    def withheld(self) -> tuple[str, ...]:
        """Sentences of the answer that the caller did not get."""
        return () if self.grounding is None else self.grounding.withheld


@dataclass(frozen=True)
class Recalled:
    """A solved task like the run's own, with its first call, that the run was given."""

    text: str
    """Shortened and without its numbers."""
    tool: str
    """The tool of the first call."""
    plan: tuple[str, ...] = ()
    run: str = ""
    """Its run; empty in records of version 1. Not in the prompt."""
    choices: tuple[tuple[str, str], ...] = ()
    """Name and value of each argument that the tool's schema lists values for."""
    share: float = 0.0
    """Estimated probability of this first call, 0 to 1, with which the model's own is multiplied. 0 where recall is
    text in the prompt."""
    shown: bool = True
    """Whether the prompt has it."""


@dataclass(frozen=True)
class Provenance:
    """What produced a run."""

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
    """The solved tasks that the run was given, the likeliest last."""


@dataclass(frozen=True)
class Branch:
    """The run that a branch comes from; the branch shares its steps before `step`."""

    run: str
    step: int


@dataclass(frozen=True)
class Trajectory:
    """A run, from its task to its outcome."""

    id: str
    task: Task
    provenance: Provenance
    started_at: str
    """ISO 8601, UTC."""
    steps: tuple[Step, ...] = ()
    outcome: Outcome | None = None
    error: str | None = None
    """The traceback of our own failure, when `outcome` is crashed."""
    ended_at: str | None = None
    branch: Branch | None = None

    @property
    def answer(self) -> str | None:
        """The answer that the caller got; None without one."""
        if self.outcome is not Outcome.ANSWERED or not self.steps or self.steps[-1].call is None:
            return None
        grounding = self.steps[-1].grounding
        if grounding is not None:
            return grounding.reply
        return str(self.steps[-1].call.arguments.get("text", ""))

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Every passage that the run has found, in the order of their labels."""
        return tuple(passage for step in self.steps for passage in step.passages)

    @property
    def citations(self) -> tuple[Passage, ...]:
        """The passages that the answer cites, in its order; if a sentence is withheld, those that support the rest."""
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
        """Tokens of all steps, without cached ones."""
        return sum(step.usage.total for step in self.steps)

    def with_step(self, step: Step) -> Trajectory:
        """Return the run with a further step."""
        return replace(self, steps=(*self.steps, step))


def to_json(trajectory: Trajectory) -> str:
    """Write a run as one line of JSON; `from_json` returns an equal one."""
    return json.dumps({"version": RECORD_VERSION, **asdict(trajectory)}, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str) -> Trajectory:
    """Read what `to_json` wrote. Raises RecordError for anything else, and for a newer version."""
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
    # The oldest records have none.
    recalled = tuple(
        Recalled(**{**one, "plan": tuple(one["plan"]), "choices": tuple(map(tuple, one.get("choices", ())))})
        for one in data.get("recalled", ())
    )
    return Provenance(**{**data, "recalled": recalled})
