"""Training rows become examples: rendered as they are served, and read under the grammar of serving.

Targets are the tokens that the model chooses, except the plan and the thought of a corrected step that the reviewer did
not give; those are context. Tokens that the grammar forces are never sampled, so they are no targets (see docs/lab/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agent.errors import DatasetError
from agent.llm.prompt.render import Frame, Renderer, step_message
from agent.llm.prompt.step_grammar import step_grammar
from agent.llm.prompt.truncation import prompt_limit, render_examples
from agent.records.run import Step
from tuner.data.curate import TrainingRow
from tuner.tree.packing import Example


def prepare_examples(
    rows: Sequence[TrainingRow], frame: Frame, renderer: Renderer, *, context: int, max_tokens: int
) -> list[Example]:
    """Render training rows; a run that outgrew the context window gives several examples.

    Args:
        rows: To train on.
        frame: Instructions and tools of the project.
        renderer: Of the base.
        context: Tokens of the base's context window.
        max_tokens: Of an example.

    Raises:
        DatasetError: An example is too long, or a target could not be generated under the grammar.
    """
    reader = _ServedReader(renderer)
    prepared = []
    for row in rows:
        tools = list(row.trajectory.provenance.tools)
        own = frame.only(tools) if tools else frame
        targets = {index: reader.fit(row, index, step, own) for index, step in sorted(row.targets.items())}
        marks = iter([mark for index, step in targets.items() for mark in reader.target_marks(row, index, step, own)])
        for rendered in render_examples(row.trajectory, own, targets, prompt_limit(context), renderer):
            if len(rendered.ids) > max_tokens:
                raise DatasetError(
                    f"run {row.run} has {len(rendered.ids)} tokens and tuning.max_tokens_per_pack is {max_tokens}; its "
                    "targets would be cut off, so raise the setting or leave the run out"
                )
            trained = tuple(is_target and next(marks) for is_target in rendered.targets)
            prepared.append(Example(rendered.ids, trained, row.task, row.run))
    return prepared


def mark_choices(tokenizer: Any, grammar: str, ids: Sequence[int]) -> list[bool]:
    """Mark for each id, and for the end of the turn, whether the model chooses it; False where the grammar forces it.

    Args:
        tokenizer: Of llguidance.
        grammar: In llguidance's Lark.
        ids: Of a turn, without its end.

    Returns:
        Marks up to the first id that the grammar does not admit; without one for the end of the turn where the grammar
        requires more.
    """
    import llguidance

    # The caller reports what is not admitted.
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    marks: list[bool] = []
    while len(marks) < len(ids):
        forced = matcher.compute_ff_tokens()
        is_forced = bool(forced) and list(ids[len(marks) : len(marks) + len(forced)]) == forced
        run = forced if is_forced else list(ids[len(marks) : len(marks) + 1])
        if not matcher.consume_tokens(run):
            return marks
        marks += [not is_forced] * len(run)
    return [*marks, not matcher.is_stopped()] if matcher.is_accepting() else marks


class _ServedReader:
    """Reads a target as the engine would generate it, under the grammar of that step."""

    def __init__(self, renderer: Renderer) -> None:
        import llguidance.hf

        self._renderer = renderer
        self._tokenizer: Any = llguidance.hf.from_tokenizer(renderer.tokenizer, eos_token=renderer.end_of_turn)

    def fit(self, row: TrainingRow, index: int, step: Step, frame: Frame) -> Step:
        """Return the step, without those of its parts that are context where the grammar does not admit them.

        Another model, or other settings, may have generated a plan or a thought that the grammar does not admit now.
        """
        if not step.context_parts:
            return step
        ids, marks = self._read(row, index, step, frame)
        if len(marks) > len(ids):
            return step
        return replace(
            step,
            plan=() if "plan" in step.context_parts else step.plan,
            thought="" if "thought" in step.context_parts else step.thought,
            context_parts=(),
        )

    def target_marks(self, row: TrainingRow, index: int, step: Step, frame: Frame) -> list[bool]:
        """Mark for each target id of the step, end of turn included, whether the model chooses it."""
        ids, marks = self._read(row, index, step, frame)
        if len(marks) <= len(ids):
            raise self._not_admitted(row, index, ids, len(marks))
        targets = self._renderer.turn(step_message(step)).targets
        return [mark for mark, is_target in zip(marks, targets, strict=True) if is_target]

    def _read(self, row: TrainingRow, index: int, step: Step, frame: Frame) -> tuple[list[int], list[bool]]:
        """Return the ids of the step without the end of turn, and their marks."""
        shape = frame.shape(row.trajectory.task, row.trajectory.steps[:index])
        if step.author == "correction":
            # A reviewer need not give a plan or a thought; leaving them out must not be learnt.
            shape = replace(shape, plan=shape.plan and bool(step.plan), thought=shape.thought and bool(step.thought))
        ids = [id for id in self._renderer.turn(step_message(step)).ids if id != self._renderer.end_of_turn]
        return ids, mark_choices(self._tokenizer, step_grammar(shape), ids)

    def _not_admitted(self, row: TrainingRow, index: int, ids: list[int], admitted: int) -> DatasetError:
        return DatasetError(
            f"step {index} of run {row.run} cannot be served: after {self._renderer.decode(ids[:admitted])!r} the "
            f"grammar does not admit {self._renderer.decode(ids[admitted:])[:60]!r}; correct the step again, with "
            "arguments that fit the tool"
        )
