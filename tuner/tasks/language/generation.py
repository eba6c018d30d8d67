"""Runs a task on a language model: under a grammar, with or without few-shot examples, with or without an adapter.

Many texts are generated for at once, on one engine. A prompt that does not fit the context loses its few-shot examples
first, the least similar first, then the oldest turns of a chat, then the end of the text; a message counts the cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import PromptError
from agent.llm.engine.session import Request
from agent.llm.prompt.render import Message
from tuner.tasks.language.few_shot import FewShotSelector, NoExamples
from tuner.tasks.language.prompts import TaskPrompt
from tuner.tasks.predictions import EntityPrediction

if TYPE_CHECKING:
    from agent.llm.chat_model import LocalModel
    from agent.llm.engine.session import Generation
    from agent.llm.prompt.render import Renderer

MAX_PARALLEL = 16
"""Texts that are generated for side by side."""
MAX_NEW_TOKENS = {
    **{"classify": 96, "tag": 320, "relate": 64, "answer": 128, "translate": 128, "summarise": 160, "converse": 96}
}
"""Tokens of an output, at most, where no examples show how long outputs are."""
SPARE = 1.25
"""Length of an output, at most, over the 99 % quantile of the examples' outputs."""


@dataclass(frozen=True)
class TokenBudget:
    """Tokens of a prompt and its output."""

    context: int
    """Of both together."""
    max_new: int
    """Of the output."""

    def to_dict(self) -> dict[str, int]:
        """Return the budget as `task.json` has it, under the keys of its first version."""
        return {"context": self.context, "most_said": self.max_new}

    @staticmethod
    def from_dict(data: Mapping[str, int]) -> TokenBudget:
        return TokenBudget(data["context"], data["most_said"])


@dataclass(frozen=True)
class FittedPrompt:
    """The token ids to continue, and how much was left out to fit the context."""

    ids: tuple[int, ...]
    examples_left_out: int = 0
    turns_left_out: int = 0
    tokens_left_out: int = 0


class Generator:
    """A task on a language model, ready to predict.

    Args:
        model: The base, or an adapter on it.
        task: The prompt of the task.
        budget: Tokens of prompt and output.
        few_shot: Selects the examples of each prompt; none by default.
        say: Called with messages about cut prompts and dropped entities.
    """

    def __init__(
        self,
        model: LocalModel,
        task: TaskPrompt,
        budget: TokenBudget,
        *,
        few_shot: FewShotSelector | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model = model
        self.task = task
        self.budget = budget
        self._few_shot = few_shot or NoExamples()
        self._say = say

    def predict(self, examples: Sequence[Any]) -> list[Any]:
        """Return a prediction for each example, in order. Raises PromptError where no part of a text fits."""
        prompts = [
            fit_prompt(self.task, example, shown, self.model.renderer, self.budget)
            for example, shown in zip(examples, self._few_shot.select(examples), strict=True)
        ]
        self._report_cuts(prompts)
        with ThreadPoolExecutor(min(MAX_PARALLEL, max(1, len(examples)))) as pool:
            predictions = list(pool.map(self._predict_one, examples, prompts))
        dropped = sum(one.dropped for one in predictions if isinstance(one, EntityPrediction))
        if dropped:
            self._say(f"{dropped} generated entities are not in their texts, and were dropped")
        return predictions

    def _predict_one(self, example: Any, prompt: FittedPrompt) -> Any:
        request = Request(
            ids=prompt.ids,
            end_of_turn=self.model.renderer.end_of_turn,
            max_new=self.budget.max_new,
            grammar=self.task.grammar(example),
            adapter=self.model.adapter,
            logprobs=True,
        )
        generation = self.model.engine.generate(request)
        output = self.model.renderer.decode(generation.ids)
        if generation.finish_reason != "stop":
            output = output.rstrip("\ufffd")
        return self.task.parse(example, output, mean_probability(generation))

    def _report_cuts(self, prompts: Sequence[FittedPrompt]) -> None:
        for count, what in (
            (
                sum(prompt.examples_left_out > 0 for prompt in prompts),
                "prompts were too long for all of their examples",
            ),
            (sum(prompt.turns_left_out > 0 for prompt in prompts), "chats were too long, and lost their oldest turns"),
            (sum(prompt.tokens_left_out > 0 for prompt in prompts), "texts were too long, and lost their ends"),
        ):
            if count:
                self._say(f"{count} of {len(prompts)} {what}: the model reads {self.budget.context} tokens")


def fit_prompt(
    task: TaskPrompt, example: Any, few_shot: Sequence[Any], renderer: Renderer, budget: TokenBudget
) -> FittedPrompt:
    """Return the prompt of an example with as much as fits. Raises PromptError where no part of the text does."""
    room = budget.context - budget.max_new - 2
    turns = task.messages(example)
    for dropped in range(len(few_shot) + 1):
        ids = prompt_ids(task, turns, few_shot[dropped:], renderer)
        if len(ids) <= room:
            return FittedPrompt(ids, dropped)
    for dropped in range(1, len(turns)):
        ids = prompt_ids(task, turns[dropped:], (), renderer)
        if len(ids) <= room:
            return FittedPrompt(ids, len(few_shot), dropped)
    last = turns[-1]
    body = renderer.encode(last.text)
    around = len(prompt_ids(task, [Message(last.role, "")], (), renderer))
    while body and around + len(body) > room:
        body = body[: max(0, room - around)]
        ids = prompt_ids(task, [Message(last.role, renderer.decode(body).rstrip("\ufffd"))], (), renderer)
        if len(ids) <= room:
            left_out = len(renderer.encode(last.text)) - len(body)
            return FittedPrompt(ids, len(few_shot), len(turns) - 1, left_out)
        body = body[:-8]
    raise PromptError(
        f"the instruction in front of the text has {around} tokens and the model reads {budget.context}, of which "
        f"{budget.max_new} are for its output; use fewer labels or a model that reads more"
    )


def prompt_ids(
    task: TaskPrompt, turns: Sequence[Message], few_shot: Sequence[Any], renderer: Renderer
) -> tuple[int, ...]:
    """Return the token ids in front of the output: the instruction, examples with their outputs, the text."""
    messages = [Message("system", task.system)]
    for example in few_shot:
        messages += [task.messages(example)[-1], Message("assistant", task.target(example))]
    return renderer.prompt([*messages, *turns])


def choose_budget(task: TaskPrompt, examples: Sequence[Any], renderer: Renderer, context: int) -> TokenBudget:
    """Choose how long an output may be: a quarter longer than nearly all examples, else as `MAX_NEW_TOKENS` has it."""
    lengths = [len(renderer.encode(task.target(example))) for example in examples]
    most = math.ceil(float(np.quantile(lengths, 0.99)) * SPARE) + 8 if lengths else MAX_NEW_TOKENS[task.name]
    longest_label = max((len(renderer.encode(label)) for label in task.labels), default=0) + 2
    return TokenBudget(context, min(max(most, longest_label), context // 2))


def mean_probability(generation: Generation) -> float:
    """Return the geometric mean of the probabilities of the tokens that the model chose; 1 without any choice."""
    chosen = [logprob for logprob in generation.logprobs if logprob is not None]
    return math.exp(sum(chosen) / len(chosen)) if chosen else 1.0
