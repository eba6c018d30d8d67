"""A run that outgrows the model's context: its oldest observations are shortened first, nothing else ever.

A pure function of the record and a limit, which goes through the steps in the order in which they were served: so
what is trained is what was served. Whatever stands behind a change is read anew; room is therefore made for several
steps at once, and what was shortened stays so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent.llm.prompt.render import Frame, Message, Rendered, Renderer, messages, step_message
from agent.records.run import Step, Trajectory

HEAD = 100
"""Characters that a shortened observation keeps."""
RESERVED = 1536
"""Tokens of the context that are left to a step and to an adapter's virtual tokens, of which there may be 1024."""


def prompt_limit(context: int) -> int:
    """Tokens a prompt may have before observations are shortened. A small context keeps a quarter back."""
    return context - min(RESERVED, context // 4)


def fitted(shown: Sequence[Message], limit: int, renderer: Renderer) -> list[Message]:
    """A run's messages as its next step is shown them.

    Behind each step whose prompt had more than `limit` tokens, observations are shortened until it has three quarters
    of that; the newest of them only where it would still have more than `limit`. Not promised: that it then fits.
    """
    fitting = list(shown)
    sizes = [len(renderer.message(message).ids) for message in shown]
    before = len(renderer.header("assistant"))
    observations = [place for place, message in enumerate(shown) if message.role == "tool"]
    for count, newest in enumerate(observations, start=1):
        total = before + sum(sizes[: newest + 1])
        if total <= limit:
            continue
        for place in observations[:count]:
            if total <= (limit if place == newest else limit * 3 // 4):
                break
            short = replace(shown[place], text=shortened(shown[place].text))
            size = len(renderer.message(short).ids)
            if size < sizes[place]:
                total += size - sizes[place]
                fitting[place], sizes[place] = short, size
    return fitting


def examples(
    trajectory: Trajectory, frame: Frame, targets: Mapping[int, Step], limit: int, renderer: Renderer
) -> list[Rendered]:
    """A run for training: the steps in `targets` (by index) as given there, each behind the prompt it is served with.

    One example, or more where observations were shortened between two targets; those of the first come first. Each
    ends behind its last target.
    """
    shown = messages(trajectory, frame)
    places = [place for place, message in enumerate(shown) if message.role == "assistant"]
    for index, step in targets.items():
        shown[places[index]] = step_message(step)
    parts: list[tuple[list[Message], list[int]]] = []
    for place in sorted(places[index] for index in targets):
        prompt = fitted(shown[:place], limit, renderer)
        goes_on = parts and prompt[: len(parts[-1][0])] == parts[-1][0]
        said = parts.pop()[1] if goes_on else []
        parts.append(([*prompt, shown[place]], [*said, place]))
    return [renderer.conversation(part, said) for part, said in parts]


def shortened(text: str) -> str:
    """The head of an observation, and how much of it is missing; as it is where that would be no shorter."""
    short = f"{text[:HEAD]} [shortened: {len(text) - HEAD} more characters; look again if you need them]"
    return short if len(short) < len(text) else text
