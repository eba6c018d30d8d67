"""The language model's way through a task: asked with a grammar, with or without examples, bare or under an adapter.

Many texts are asked at once, on one engine. What does not fit the context loses shots first, the least like it first,
then the oldest turns of a chat, then the end of the text; how often that happened is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import PromptError
from agent.llm.engine.session import Request
from agent.llm.prompt.render import Message
from tuner.tasks.language.few_shot import NoShots, Shots
from tuner.tasks.language.prompts import Asking
from tuner.tasks.predictions import Entities

if TYPE_CHECKING:
    from agent.llm.chat_model import LocalModel
    from agent.llm.engine.session import Generation
    from agent.llm.prompt.render import Renderer

AT_ONCE = 16
"""Texts that are asked side by side."""
LIMITS = {"classify": 96, "tag": 320, "relate": 64, "answer": 128, "translate": 128, "summarise": 160, "converse": 96}
"""Tokens that may be said, where no examples show how long it gets."""
SPARE = 1.25
"""How much longer than nearly all of the examples a text may get."""


@dataclass(frozen=True)
class Budget:
    """How much is read and said, in tokens."""

    context: int
    """Of prompt and what is said together."""
    most_said: int


class Generator:
    """A task on a language model, ready to be asked; `task` is how, as `tuner.tasks.predictor` expects it."""

    def __init__(
        self,
        model: LocalModel,
        task: Asking,
        budget: Budget,
        *,
        shots: Shots | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model = model
        self.task = task
        self.budget = budget
        self._shots = shots or NoShots()
        self._say = say

    def predict(self, examples: Sequence[Any]) -> list[Any]:
        """A prediction for each example, in their order. Raises PromptError where not even a cut text fits."""
        shots = self._shots.for_each(examples)
        prompts = [
            fitted_prompt(self.task, one, some, self.model.renderer, self.budget)
            for one, some in zip(examples, shots, strict=True)
        ]
        self._tell_cuts(prompts)
        with ThreadPoolExecutor(min(AT_ONCE, max(1, len(examples)))) as team:
            said = list(team.map(self._ask, examples, prompts))
        dropped = sum(one.dropped for one in said if isinstance(one, Entities))
        if dropped:
            self._say(f"{dropped} entities that were said are not in their texts, and were dropped")
        return said

    def _ask(self, example: Any, prompt: Prompt) -> Any:
        request = Request(
            ids=prompt.ids,
            end=self.model.renderer.end_of_turn,
            max_new=self.budget.most_said,
            grammar=self.task.grammar(example),
            adapter=self.model.adapter,
            logprobs=True,
        )
        made = self.model.engine.generate(request)
        text = self.model.renderer.decode(made.ids)
        return self.task.read(example, text if made.end == "stop" else text.rstrip("\ufffd"), mean_probability(made))

    def _tell_cuts(self, prompts: Sequence[Prompt]) -> None:
        for count, what in (
            (sum(one.shots_left_out > 0 for one in prompts), "prompts were too long for all of their examples"),
            (sum(one.turns_left_out > 0 for one in prompts), "chats were too long, and lost their oldest turns"),
            (sum(one.tokens_left_out > 0 for one in prompts), "texts were too long, and lost their ends"),
        ):
            if count:
                self._say(f"{count} of {len(prompts)} {what}: the model reads {self.budget.context} tokens")


@dataclass(frozen=True)
class Prompt:
    """Ids to continue, and what was left out of them."""

    ids: tuple[int, ...]
    shots_left_out: int = 0
    turns_left_out: int = 0
    tokens_left_out: int = 0


def fitted_prompt(task: Asking, example: Any, shots: Sequence[Any], renderer: Renderer, budget: Budget) -> Prompt:
    """The prompt of an example with as much as fits. Raises PromptError where nothing of the text does."""
    room = budget.context - budget.most_said - 2
    turns = task.conversation(example)
    for out in range(len(shots) + 1):
        ids = prompt_ids(task, turns, shots[out:], renderer)
        if len(ids) <= room:
            return Prompt(ids, out)
    for gone in range(1, len(turns)):
        ids = prompt_ids(task, turns[gone:], (), renderer)
        if len(ids) <= room:
            return Prompt(ids, len(shots), gone)
    last = turns[-1]
    body = renderer.encode(last.text)
    around = len(prompt_ids(task, [Message(last.role, "")], (), renderer))
    while body and around + len(body) > room:
        body = body[: max(0, room - around)]
        ids = prompt_ids(task, [Message(last.role, renderer.decode(body).rstrip("\ufffd"))], (), renderer)
        if len(ids) <= room:
            left_out = len(renderer.encode(last.text)) - len(body)
            return Prompt(ids, len(shots), len(turns) - 1, left_out)
        body = body[:-8]
    raise PromptError(
        f"what the model is told before the text has {around} tokens and it reads {budget.context}, of which "
        f"{budget.most_said} are for what it says; use fewer labels or a model that reads more"
    )


def prompt_ids(task: Asking, turns: Sequence[Message], shots: Sequence[Any], renderer: Renderer) -> tuple[int, ...]:
    """The ids before what is to be said: the task, examples with what they should say, the text itself."""
    spoken = [Message("system", task.system)]
    for one in shots:
        spoken += [task.conversation(one)[-1], Message("assistant", task.wanted(one))]
    return renderer.prompt([*spoken, *turns])


def budget_of(task: Asking, examples: Sequence[Any], renderer: Renderer, context: int) -> Budget:
    """What is said may be a quarter longer than nearly all of the examples; without any, as long as `LIMITS` says."""
    lengths = [len(renderer.encode(task.wanted(one))) for one in examples]
    most = math.ceil(float(np.quantile(lengths, 0.99)) * SPARE) + 8 if lengths else LIMITS[task.name]
    longest = max((len(renderer.encode(label)) for label in task.labels), default=0) + 2
    return Budget(context, min(max(most, longest), context // 2))


def mean_probability(made: Generation) -> float:
    """The geometric mean of how likely the model found what it chose; 1 where it had no choice."""
    chosen = [one for one in made.logprobs if one is not None]
    return math.exp(sum(chosen) / len(chosen)) if chosen else 1.0
