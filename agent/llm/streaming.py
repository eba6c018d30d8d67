"""Decoding of generated ids to text while they arrive: whole characters only, up to the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.llm.engine.session import Generation
from agent.llm.prompt.render import Renderer


class StreamDecoder:
    """Decodes one generation; its `add` is the request's `on_tokens`."""

    def __init__(self, renderer: Renderer, on_text: Callable[[str], None] | None, stops: Sequence[str] = ()) -> None:
        self.on_text = on_text
        self.emitted = ""
        self._renderer = renderer
        self._stops = stops
        self._ids: list[int] = []

    def add(self, ids: Sequence[int]) -> bool:
        """Add new ids and emit the text that is final; return False once a stop string is complete."""
        self._ids += ids
        if self.on_text is None and not self._stops:
            return True
        text, is_stopped = text_before_stop(self._renderer.decode(self._ids), self._stops)
        # The end of the text may turn out to be part of a character or the beginning of a stop string.
        final = text if is_stopped else _without_partial_end(text, self._stops)
        if self.on_text is not None and len(final) > len(self.emitted):
            self.on_text(final[len(self.emitted) :])
            self.emitted = final
        return not is_stopped


def text_before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop string, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def decode_generation(renderer: Renderer, generation: Generation) -> str:
    """Return the text of a generation, without the part of a character that it may have been cut off in."""
    text = renderer.decode(generation.ids)
    return text if generation.finish_reason == "stop" else text.rstrip("\ufffd")


def _without_partial_end(text: str, stops: Sequence[str]) -> str:
    """Drop what may be part of a character at the end, and the beginning of a stop string before it."""
    whole = text.rstrip("\ufffd")
    sizes = (size for stop in stops for size in range(1, len(stop)) if whole.endswith(stop[:size]))
    return whole[: len(whole) - max(sizes, default=0)]
