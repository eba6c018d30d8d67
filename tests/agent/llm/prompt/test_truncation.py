"""A run that outgrows the context: the oldest observations are shortened, and it is trained as it was served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.tools import BaseTool, StructuredTool

from agent.errors import PromptError
from agent.llm.chat_model import LocalModel
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Generation, Request
from agent.llm.prompt.render import Frame, Message, Rendered, Renderer, messages
from agent.llm.prompt.step_grammar import write_step
from agent.llm.prompt.truncation import HEAD, RESERVED, fit_to_limit, prompt_limit, render_examples, shorten_observation
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.run.limits import Budget
from agent.run.loop import run
from agent.run.state import Options
from agent.run.tools import make_frame

FRAME = Frame("You help.", ())
TASK = Task("t", "Where is it?")


def trajectory(*steps: Step, task: Task = TASK) -> Trajectory:
    return Trajectory("r", task, Provenance(), "", steps)


def steps(*sizes: int, error: bool = False) -> list[Step]:
    """A step for each size, which is that of its observation in characters."""
    made = []
    for number, size in enumerate(sizes):
        text = f"{number}:".ljust(size, "x")[:size]
        call = ToolCall("look", {"order": number})
        made.append(Step(call, "" if error else text, error=text if error else None, plan=("look",), thought="Hm."))
    return made


def served(renderer: Renderer, limit: int, *taken: Step) -> list[list[Message]]:
    """What each next step was shown."""
    return [
        fit_to_limit(messages(trajectory(*taken[:count]), FRAME), limit, renderer) for count in range(len(taken) + 1)
    ]


def is_short(message: Message) -> bool:
    return "[shortened: " in message.text


def observed(shown: list[Message]) -> list[Message]:
    return [message for message in shown if message.role == "tool"]


def test_a_shortened_observation_keeps_its_head_and_says_what_is_missing() -> None:
    assert (
        shorten_observation("x" * 1930)
        == f"{'x' * HEAD} [shortened: 1830 more characters; look again if you need them]"
    )
    for size in range(300):
        text = "abc" * 100
        assert shorten_observation(text[:size]) == text[:size] or len(shorten_observation(text[:size])) < size


def test_a_run_that_fits_is_shown_as_it_is(renderer: Renderer) -> None:
    shown = messages(trajectory(*steps(300, 300, 300)), FRAME)
    size = len(renderer.prompt(shown))
    assert fit_to_limit(shown, size, renderer) == shown
    assert fit_to_limit(shown, size - 1, renderer) != shown


def test_the_oldest_observations_are_shortened_until_the_prompt_has_three_quarters_of_the_limit(
    renderer: Renderer,
) -> None:
    shown = messages(trajectory(*steps(*[600] * 5)), FRAME)
    limit = len(renderer.prompt(shown)) - 1
    made = fit_to_limit(shown, limit, renderer)
    assert [is_short(one) for one in observed(made)] == [True, True, False, False, False]
    assert len(renderer.prompt(made)) <= limit * 3 // 4
    assert [one for one in made if one.role != "tool"] == [one for one in shown if one.role != "tool"]


def test_errors_are_observations_too(renderer: Renderer) -> None:
    shown = messages(trajectory(*steps(300, 300, error=True)), FRAME)
    made = fit_to_limit(shown, len(renderer.prompt(shown)) - 1, renderer)
    assert observed(made)[0].text.startswith("Error: 0:xxx")
    assert [is_short(one) for one in observed(made)] == [True, False]


def test_what_would_be_no_shorter_is_left(renderer: Renderer) -> None:
    shown = messages(trajectory(*steps(300, HEAD + 10, 20, 300)), FRAME)
    assert [is_short(one) for one in observed(fit_to_limit(shown, 10, renderer))] == [True, False, False, True]


def test_the_newest_is_shortened_only_where_nothing_else_makes_it_fit(renderer: Renderer) -> None:
    shown = messages(trajectory(*steps(300, 900)), FRAME)
    size = len(renderer.prompt(shown))
    older = size - len(renderer.prompt(fit_to_limit(shown, size - 1, renderer)))
    assert 0 < older < size // 4, "the older alone does not come down to three quarters, and need not"
    assert [is_short(one) for one in observed(fit_to_limit(shown, size - older, renderer))] == [True, False]
    assert [is_short(one) for one in observed(fit_to_limit(shown, size - older - 1, renderer))] == [True, True]


def test_what_was_shortened_stays_so_and_most_prompts_only_grow(renderer: Renderer) -> None:
    prompts = served(renderer, 8000, *steps(*[600] * 30))
    counts = [sum(is_short(one) for one in shown) for shown in prompts]
    assert counts == sorted(counts)
    grown = [longer[: len(shorter)] == shorter for shorter, longer in pairwise(prompts)]
    assert 0 < grown.count(False) < len(grown) / 3
    assert all(len(renderer.prompt(shown)) <= 8000 for shown in prompts)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 600), max_size=7),
    limit=st.integers(50, 1500),
    chosen=st.sets(st.integers(0, 6), min_size=1),
)
def test_each_target_is_trained_behind_the_prompt_it_was_served_with(
    renderer: Renderer, sizes: list[int], limit: int, chosen: set[int]
) -> None:
    taken = steps(*sizes, 5)
    targets = {index: taken[index] for index in chosen if index < len(taken)} or {0: taken[0]}
    made = render_examples(trajectory(*taken), FRAME, targets, limit, renderer)
    prompts = served(renderer, limit, *taken)
    wanted = [
        (renderer.prompt(prompts[index]), (*renderer.encode(write_step(step)), renderer.end_of_turn))
        for index, step in sorted(targets.items())
    ]
    assert [behind for one in made for behind in targets_of(one)] == wanted
    assert len(made) <= len(targets)
    if len(renderer.prompt(prompts[-1])) <= limit and not any(map(is_short, prompts[-1])):
        assert len(made) == 1


def test_a_corrected_step_is_trained_behind_what_was_served_before_it(renderer: Renderer) -> None:
    taken = steps(600, 600, 600)
    better = replace(taken[2], thought="Better.")
    limit = 700
    (made,) = render_examples(trajectory(*taken), FRAME, {2: better}, limit, renderer)
    prompt = served(renderer, limit, *taken)[2]
    assert any(map(is_short, prompt))
    assert targets_of(made)[0][0] == renderer.prompt(prompt)
    assert renderer.decode(targets_of(made)[0][1]) == write_step(better)


def targets_of(example: Rendered) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What is to be said, each with all that stands in front of it."""
    edges = [place for place, (one, next) in enumerate(pairwise((*example.targets, False)), 1) if one != next]
    return [(example.ids[:start], example.ids[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def test_the_reserve_is_the_same_for_every_adapter_and_a_quarter_of_a_small_context() -> None:
    assert prompt_limit(8192) == 8192 - RESERVED
    assert prompt_limit(1024) == 768


# -- in a run ------------------------------------------------------------------------------------------------


class Recording(Engine):
    """An engine that keeps the prompts of its requests."""

    prompts: list[tuple[int, ...]]

    def generate(self, request: Request, cancelled: threading.Event | None = None) -> Generation:
        self.prompts = [*getattr(self, "prompts", []), request.ids]
        return super().generate(request, cancelled)


@pytest.fixture
def model(parts: Any, tokenizer: Any, renderer: Renderer) -> Iterator[LocalModel]:
    engine = Recording(parts.model(tokenizer, max_position_embeddings=4096), tokenizer)
    yield LocalModel(engine=engine, renderer=renderer, base="tiny", revision="0")
    engine.close()


def look_tool(size: int) -> BaseTool:
    """A tool that never says the same twice, in so many characters."""
    count = iter(range(1000))

    def look(order: int) -> str:
        """Look."""
        return f"{next(count)}:".ljust(size, "x")

    return StructuredTool.from_function(look)


OPTIONS = Options(Budget(steps=10, tokens=10**6), temperature=1.0, plan=False, thought=False, instructions="Help.")


def test_a_run_that_outgrows_the_context_goes_on_and_is_trained_on_the_very_ids_that_were_served(
    model: LocalModel,
) -> None:
    made = run(TASK, model, [look_tool(900)], options=OPTIONS)
    assert (made.outcome, len(made.steps)) == (Outcome.OUT_OF_STEPS, 10)
    assert all(len(step.observation) == 900 for step in made.steps), "the record keeps them whole"
    assert isinstance(model.engine, Recording)
    prompts = model.engine.prompts
    limit = prompt_limit(model.engine.context)
    frame = make_frame([look_tool(900)], OPTIONS)
    assert max(map(len, prompts)) <= limit < len(model.renderer.prompt(messages(made, frame)))
    # Most steps read no more than what is new.
    assert sum(step.usage.prompt - step.usage.cached > 1000 for step in made.steps) < len(made.steps) / 2
    rendered = render_examples(made, frame, dict(enumerate(made.steps)), limit, model.renderer)
    trained = [pair for one in rendered for pair in targets_of(one)]
    assert trained == [(prompt, step.token_ids) for prompt, step in zip(prompts, made.steps, strict=True)]
    assert len(rendered) > 1


def test_where_nothing_is_left_to_shorten_the_run_ends_by_name(model: LocalModel) -> None:
    made = run(TASK, model, [look_tool(20)], options=replace(OPTIONS, budget=Budget(steps=100, tokens=10**6)))
    assert made.outcome is Outcome.OUT_OF_TOKENS
    assert made.error is None
    assert isinstance(model.engine, Recording)
    assert len(model.engine.prompts[-1]) > prompt_limit(model.engine.context), "the reserve is used too before that"


def test_a_task_longer_than_the_context_says_what_to_do(model: LocalModel) -> None:
    task = Task("t", "7" * 5000)
    made = run(task, model, [look_tool(20)], options=OPTIONS)
    assert made.outcome is Outcome.CRASHED
    assert made.error is not None
    assert "PromptError: the prompt has " in made.error
    assert "and the model reads 4096; shorten the task or the conversation" in made.error
    with pytest.raises(PromptError):
        model.invoke(task.text)


def test_a_task_between_the_limit_and_the_context_is_still_done(model: LocalModel) -> None:
    task = Task("t", "7" * 3500)
    made = run(task, model, [look_tool(20)], options=replace(OPTIONS, budget=Budget(steps=1)))
    assert made.outcome is Outcome.OUT_OF_STEPS
    assert prompt_limit(4096) < made.steps[0].usage.prompt < 4095
