"""Training rows become examples: rendered as they are served, read under the grammar they are served under.

Trained are the tokens that the model chooses, less the plan and the thought of a corrected step that the reviewer did
not give: these are its context. What the grammar forces it never samples, so learning to say it
would only dilute what matters (see docs/lab.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agent.errors import DatasetError
from agent.llm.prompt.render import Frame, Renderer, step_message
from agent.llm.prompt.step_grammar import step_grammar
from agent.llm.prompt.truncation import examples, prompt_limit
from agent.records.run import Step
from tuner.data.curate import TrainingRow
from tuner.tree.packing import Example


def prepare(
    rows: Sequence[TrainingRow], frame: Frame, renderer: Renderer, *, context: int, max_tokens: int
) -> list[Example]:
    """An example for each row, or several where a run outgrew the base's `context`, in tokens.

    Raises DatasetError, naming run and step, for a target that could not be served.
    """
    served = _Served(renderer)
    prepared = []
    for row in rows:
        own = frame.only(list(row.trajectory.provenance.tools)) if row.trajectory.provenance.tools else frame
        targets = {index: served.fitting(row, index, step, own) for index, step in sorted(row.targets.items())}
        chosen = [served.choices(row, index, step, own) for index, step in targets.items()]
        left = iter([choice for step in chosen for choice in step])
        for rendered in examples(row.trajectory, own, targets, prompt_limit(context), renderer):
            if len(rendered.ids) > max_tokens:
                raise DatasetError(
                    f"run {row.run} has {len(rendered.ids)} tokens and tuning.max_tokens_per_pack is {max_tokens}; its "
                    "targets would be cut off, so raise the setting or leave the run out"
                )
            marks = tuple(said and next(left) for said in rendered.targets)
            prepared.append(Example(rendered.ids, marks, row.task, row.run))
    return prepared


def choices(tokenizer: Any, grammar: str, said: Sequence[int]) -> list[bool]:
    """For each id that is said, and the end of the turn: whether it is the model's choice or the grammar's.

    Ends at the first id that the grammar does not admit, and before the end of the turn where it asks for more.
    `tokenizer` is llguidance's.
    """
    import llguidance

    # What is not admitted is the caller's to tell.
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    chosen: list[bool] = []
    while len(chosen) < len(said):
        forced = matcher.compute_ff_tokens()
        is_forced = bool(forced) and list(said[len(chosen) : len(chosen) + len(forced)]) == forced
        run = forced if is_forced else list(said[len(chosen) : len(chosen) + 1])
        if not matcher.consume_tokens(run):
            return chosen
        chosen += [not is_forced] * len(run)
    return [*chosen, not matcher.is_stopped()] if matcher.is_accepting() else chosen


class _Served:
    """Reads what is to be trained the way the engine would have served it, under the grammar of that step."""

    def __init__(self, renderer: Renderer) -> None:
        import llguidance.hf

        self._renderer = renderer
        self._tokenizer: Any = llguidance.hf.from_tokenizer(renderer.tokenizer, eos_token=renderer.end_of_turn)

    def fitting(self, row: TrainingRow, index: int, step: Step, frame: Frame) -> Step:
        """The step as it is trained: without its context where our model could not have said that.

        Another model, or other settings, may have given a plan or a thought that the grammar does not admit here.
        """
        if not step.context_parts:
            return step
        said, chosen = self._read(row, index, step, frame)
        if len(chosen) > len(said):
            return step
        return replace(
            step,
            plan=() if "plan" in step.context_parts else step.plan,
            thought="" if "thought" in step.context_parts else step.thought,
            context_parts=(),
        )

    def choices(self, row: TrainingRow, index: int, step: Step, frame: Frame) -> list[bool]:
        """For each target id of the step, end of turn included: whether it is the model's choice or the grammar's."""
        said, chosen = self._read(row, index, step, frame)
        if len(chosen) <= len(said):
            raise self._refusal(row, index, said, len(chosen))
        marks = self._renderer.turn(step_message(step)).targets
        return [choice for choice, is_target in zip(chosen, marks, strict=True) if is_target]

    def _read(self, row: TrainingRow, index: int, step: Step, frame: Frame) -> tuple[list[int], list[bool]]:
        """The ids of the step without the end of turn, and `choices` of them."""
        shape = frame.shape(row.trajectory.task, row.trajectory.steps[:index])
        if step.author == "correction":
            # A reviewer need not give a plan or a thought; what is not there is not learnt to be left out.
            shape = replace(shape, plan=shape.plan and bool(step.plan), thought=shape.thought and bool(step.thought))
        ids = self._renderer.turn(step_message(step)).ids
        said = [one for one in ids if one != self._renderer.end_of_turn]
        return said, choices(self._tokenizer, step_grammar(shape), said)

    def _refusal(self, row: TrainingRow, index: int, said: list[int], taken: int) -> DatasetError:
        return DatasetError(
            f"step {index} of run {row.run} cannot be served: behind {self._renderer.decode(said[:taken])!r} the "
            f"grammar does not admit {self._renderer.decode(said[taken:])[:60]!r}; correct the step again, with "
            "arguments that fit the tool"
        )
