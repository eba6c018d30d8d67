"""Truncation of runs that outgrow the model's context: observations are shortened, the oldest first.

A pure function of the record and a limit that repeats the truncation of each step that was served, so that training
sees the prompts of serving. A change invalidates the cached keys and values after it; therefore room is made for
several steps at once, and a shortened observation stays shortened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent.llm.prompt.render import Frame, Message, Rendered, Renderer, messages, step_message
from agent.records.run import Step, Trajectory

HEAD = 100
"""Characters that a shortened observation keeps."""
RESERVED = 1536
"""Tokens of the context reserved for a step and for the virtual tokens of an adapter, which may be 1024."""


def prompt_limit(context: int) -> int:
    """Return the tokens that a prompt may have before it is truncated; a small context reserves a quarter."""
    return context - min(RESERVED, context // 4)


def fit_to_limit(conversation: Sequence[Message], limit: int, renderer: Renderer) -> list[Message]:
    """Return a run's messages as the prompt of its next step, with observations shortened where needed.

    At each step whose prompt has more than `limit` tokens, observations are shortened until it has three quarters of
    that; the newest one only where the prompt would still exceed `limit`. Does not guarantee that it then fits.
    """
    fitting = list(conversation)
    sizes = [len(renderer.message(message).ids) for message in conversation]
    before = len(renderer.header("assistant"))
    observations = [place for place, message in enumerate(conversation) if message.role == "tool"]
    for count, newest in enumerate(observations, start=1):
        total = before + sum(sizes[: newest + 1])
        if total <= limit:
            continue
        for place in observations[:count]:
            if total <= (limit if place == newest else limit * 3 // 4):
                break
            short = replace(conversation[place], text=shorten_observation(conversation[place].text))
            size = len(renderer.message(short).ids)
            if size < sizes[place]:
                total += size - sizes[place]
                fitting[place], sizes[place] = short, size
    return fitting


def render_examples(
    trajectory: Trajectory, frame: Frame, targets: Mapping[int, Step], limit: int, renderer: Renderer
) -> list[Rendered]:
    """Render a run for training: each target step after the prompt that it is served with.

    Args:
        trajectory: the run.
        frame: its instructions and tools.
        targets: the steps to train on, by their index in the run, as they should have been.
        limit: as in `fit_to_limit`.
        renderer: of the model.

    Returns: One example, or more where observations are shortened between two targets. Each ends with its last target.
    """
    conversation = messages(trajectory, frame)
    places = [place for place, message in enumerate(conversation) if message.role == "assistant"]
    for index, step in targets.items():
        conversation[places[index]] = step_message(step)
    parts: list[tuple[list[Message], list[int]]] = []
    for place in sorted(places[index] for index in targets):
        prompt = fit_to_limit(conversation[:place], limit, renderer)
        is_continuation = parts and prompt[: len(parts[-1][0])] == parts[-1][0]
        earlier = parts.pop()[1] if is_continuation else []
        parts.append(([*prompt, conversation[place]], [*earlier, place]))
    return [renderer.conversation(part, target_places) for part, target_places in parts]


def shorten_observation(text: str) -> str:
    """Return the head of an observation and how much is missing, or the whole text where that is no longer."""
    short = f"{text[:HEAD]} [shortened: {len(text) - HEAD} more characters; look again if you need them]"
    return short if len(short) < len(text) else text
