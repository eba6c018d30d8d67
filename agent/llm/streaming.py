"""TODO: agent/llm/streaming.py"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.llm.engine.session import Generation
from agent.llm.prompt.render import Renderer


class _Speaker:
    """Turns ids into text as they come, whole characters only, and hears the stop strings."""

    def __init__(self, renderer: Renderer, on_text: Callable[[str], None] | None, stops: Sequence[str] = ()) -> None:
        self.on_text = on_text
        self.given = ""
        self._renderer = renderer
        self._stops = stops
        self._ids: list[int] = []

    def hear(self, ids: Sequence[int]) -> bool:
        """Take new ids; False once a stop string is complete."""
        self._ids += ids
        if self.on_text is None and not self._stops:
            return True
        whole, stopped = _until(self._renderer.decode(self._ids), self._stops)
        # What may yet turn out to be half a character or the head of a stop string is held back.
        ready = whole if stopped else _settled(whole, self._stops)
        if self.on_text is not None and len(ready) > len(self.given):
            self.on_text(ready[len(self.given) :])
            self.given = ready
        return not stopped


def _until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _settled(text: str, stops: Sequence[str]) -> str:
    """The text without what may be half a character, and without the head of a stop string in front of that."""
    whole = text.rstrip("\ufffd")
    heads = (size for stop in stops for size in range(1, len(stop)) if whole.endswith(stop[:size]))
    return whole[: len(whole) - max(heads, default=0)]


def _decode(renderer: Renderer, made: Generation) -> str:
    """What was said, without the half of a character that it was cut off in."""
    text = renderer.decode(made.ids)
    return text if made.end == "stop" else text.rstrip("\ufffd")
