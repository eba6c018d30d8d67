"""Training rows become examples: rendered as they are served, and checked against the grammar they are served under."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.errors import DatasetError
from agent.llm.grammar import step_grammar
from agent.llm.render import Frame, Renderer
from agent.trajectory import Step, Trajectory
from tuner.curate import TrainingRow
from tuner.packing import Example


def prepare(rows: Sequence[TrainingRow], frame: Frame, renderer: Renderer, *, max_tokens: int) -> list[Example]:
    """An example for each row. Raises DatasetError, naming run and step, for a target that could not be served."""
    gate = _Admission(renderer)
    examples = []
    for row in rows:
        own = frame.only(list(row.trajectory.provenance.tools)) if row.trajectory.provenance.tools else frame
        for index, step in row.targets.items():
            gate.check(row, index, step, own)
        rendered = renderer.example(row.trajectory, own, row.targets)
        if len(rendered.ids) > max_tokens:
            raise DatasetError(
                f"run {row.run} has {len(rendered.ids)} tokens and tuning.max_tokens_per_pack is {max_tokens}; its "
                "targets would be cut off, so raise the setting or leave the run out"
            )
        examples.append(Example(rendered.ids, rendered.targets, row.task))
    return examples


class _Admission:
    """Asks the grammar of a step whether it admits what is to be trained there."""

    def __init__(self, renderer: Renderer) -> None:
        import llguidance.hf

        self._renderer = renderer
        self._tokenizer: Any = llguidance.hf.from_tokenizer(renderer.tokenizer)

    def check(self, row: TrainingRow, index: int, step: Step, frame: Frame) -> None:
        import llguidance

        from agent.llm.render import step_message

        before = row.trajectory.steps[:index]
        shape = frame.shape(before, _labels(row.trajectory, index))
        ids = step.token_ids or self._renderer.encode(step_message(step).text)
        said = [one for one in ids if one != self._renderer.end_of_turn]
        matcher = llguidance.LLMatcher(self._tokenizer, step_grammar(shape))
        taken = matcher.try_consume_tokens(said)
        if taken < len(said) or not matcher.is_accepting():
            raise DatasetError(
                f"step {index} of run {row.run} cannot be served: behind {self._renderer.decode(said[:taken])!r} "
                f"the grammar does not admit {self._renderer.decode(said[taken:])[:60]!r}; correct the step again, "
                "with a plan where one is asked for and arguments that fit the tool"
            )


def _labels(trajectory: Trajectory, index: int) -> list[int]:
    return [passage.label for step in trajectory.steps[:index] for passage in step.passages]
