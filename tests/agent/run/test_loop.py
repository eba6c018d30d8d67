"""The loop: what the model and its tools do wrong goes back to the model, what we do wrong ends the run, and every end
has a name."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import BaseModel

from agent.errors import ModelError
from agent.llm.prompt.render import Frame
from agent.llm.scripted import ScriptedModel, answer, call
from agent.llm.step_model import Proposal, Stepper
from agent.privacy.redaction import Scrubber
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory, Usage
from agent.run.limits import REPEATED, Budget
from agent.run.loop import run, stream
from agent.run.state import Event, Options
from agent.run.tools import EFFECT_UNKNOWN, MAX_EXCEPTION
from agent.storage.store import Store
from tools.basics import answer as answer_tool
from tools.basics import hand_over
from tools.context import Passage, ToolContext
from tools.knowledge import search_knowledge

TASK = Task("t-1", "Where is order 7?")


class Shelf:
    """Two passages, whatever is asked."""

    def search(self, query: str, k: int) -> Sequence[Passage]:
        found = [("a", "returns.md", "Returns", "Thirty days."), ("b", "parcels.md", "", "Two days.")]
        return [Passage(0, *one, score=0.9) for one in found][:k]


class Slow:
    """A stepper that calls the same tool with another number each time, and uses the tokens it is told to."""

    def __init__(self, *, tokens: int = 1, seconds: float = 0.0, end: Any = "stop") -> None:
        self._usage = Usage(sampled=tokens)
        self._seconds = seconds
        self._end = end

    def provenance(self) -> Provenance:
        return Provenance(base="slow")

    def propose(
        self,
        trajectory: Trajectory,
        frame: Frame,
        *,
        temperature: float,
        seed: int,
        max_tokens: int,
        max_seconds: float,
        cancelled: threading.Event,
        on_text: Callable[[str], None] | None = None,
    ) -> Proposal:
        if cancelled.wait(self._seconds):
            return Proposal(None, finish_reason="cancelled")
        if on_text is not None:
            on_text("{")
        number = len(trajectory.steps)
        return Proposal(ToolCall("look", {"order": number}), usage=self._usage, finish_reason=self._end)


def look(order: int) -> str:
    """Look an order up."""
    if order == 404:
        raise ToolException("There is no order 404.")
    return f"Order {order} is on its way."


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "ratchet.db") as store:
        yield store


@pytest.fixture
def tools(tmp_path: Path) -> list[BaseTool]:
    context = ToolContext(tmp_path, tmp_path, retriever=Shelf())
    looking = StructuredTool.from_function(look, metadata={"effect": "read"})
    return [looking, search_knowledge(context), answer_tool(), hand_over()]


def done(replies: Sequence[AIMessage], tools: Sequence[BaseTool], **rest: Any) -> Trajectory:
    return run(TASK, ScriptedModel(replies), tools, **rest)


def test_an_answer_ends_the_run_with_its_citations(tools: list[BaseTool], store: Store) -> None:
    replies = [
        call("search_knowledge", query="order", plan=["search", "answer"], thought="Look first."),
        answer("On its way.", 2, 1),
    ]
    made = done(replies, tools, recorder=store)
    assert (made.outcome, made.answer) == (Outcome.ANSWERED, "On its way.")
    assert [passage.document for passage in made.citations] == ["parcels.md", "returns.md"]
    assert (made.steps[0].plan, made.steps[0].thought) == (("search", "answer"), "Look first.")
    assert [passage.label for passage in made.steps[0].passages] == [1, 2]
    assert store.get(made.id) == made


def test_a_hand_over_ends_the_run_as_refused(tools: list[BaseTool]) -> None:
    made = done([call("hand_over", reason="Not mine to say.")], tools)
    assert (made.outcome, made.answer) == (Outcome.REFUSED, None)


def test_a_tools_refusal_goes_back_to_the_model(tools: list[BaseTool]) -> None:
    model = ScriptedModel([call("look", order=404), answer("There is none.")])
    made = run(TASK, model, tools)
    assert made.steps[0].error == "There is no order 404."
    assert made.outcome is Outcome.ANSWERED
    assert model.conversations[1][-1].content == "Error: There is no order 404."


def test_arguments_that_do_not_fit_go_back_to_the_model(tools: list[BaseTool]) -> None:
    made = done([call("look", order="seven"), call("look"), answer("Sorry.")], tools)
    assert made.steps[0].error is not None
    assert "order: Input should be a valid integer" in made.steps[0].error
    assert made.steps[1].error == "order: Field required"
    assert made.outcome is Outcome.ANSWERED


def test_an_unknown_tool_goes_back_to_the_model_with_those_there_are(tools: list[BaseTool]) -> None:
    made = done([call("fly"), answer("Sorry.")], tools)
    assert made.steps[0].error == "There is no tool 'fly'. Tools: look, search_knowledge, answer, hand_over."


def test_an_answer_may_cite_only_what_was_shown(tools: list[BaseTool]) -> None:
    replies = [
        answer("Yes.", 1),
        call("search_knowledge", query="order"),
        answer("Yes.", 1, 9),
        answer("Yes.", 1),
    ]
    made = done(replies, tools)
    assert made.steps[0].error == "No passage 1 was shown; cite none."
    assert made.steps[2].error == "No passage 9 was shown; cite 1, 2."
    assert made.outcome is Outcome.ANSWERED
    assert len(made.steps) == 4


def test_a_quoted_answer_is_what_tools_said_whatever_model_drives_the_run(tools: list[BaseTool]) -> None:
    quoting = [answer_tool(quoted=True) if tool.name == "answer" else tool for tool in tools]
    replies = [
        answer("Two days."),
        call("search_knowledge", query="order"),
        answer("Three days.", 1),
        answer("Two days.", 2),
    ]
    made = done(replies, quoting)
    refusal = "text must be one or 2 whole sentences that tools said, word for word."
    assert [step.error for step in made.steps] == [refusal, None, refusal, None]
    assert (made.outcome, made.answer) == (Outcome.ANSWERED, "Two days.")


class Reply(BaseModel):
    """What a backend is expected to send."""

    status: str


def raising(fault: BaseException, *, effect: str = "read") -> BaseTool:
    """A tool `pay` that raises what is given."""

    def pay(order: int) -> str:
        """Pay an order."""
        raise fault

    return StructuredTool.from_function(pay, metadata={"effect": effect})


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (RuntimeError("the database is on fire"), "pay raised RuntimeError: the database is on fire."),
        (KeyError("7"), "pay raised KeyError: '7'."),
        (TimeoutError("no reply\n  in 30 s."), "pay raised TimeoutError: no reply in 30 s."),
        (ConnectionError(), "pay raised ConnectionError."),
        (StopIteration(3), "pay raised StopIteration: 3."),
        (SystemExit(2), "pay raised SystemExit: 2."),
        (SystemExit(0), "pay raised SystemExit: 0."),
        (GeneratorExit(), "pay raised GeneratorExit."),
        (asyncio.CancelledError(), "pay raised CancelledError."),
        (ToolException(), "pay refused and did not say why."),
        (ToolException("bad \udcff name"), "bad ? name"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, BaseException) else "",
)
def test_an_exception_out_of_a_tool_is_recorded_with_its_step_and_the_run_goes_on(
    tools: list[BaseTool], store: Store, fault: BaseException, shown: str
) -> None:
    model = ScriptedModel([call("pay", order=7), answer("I could not.")])
    made = run(TASK, model, [raising(fault), *tools], recorder=store)
    assert (made.outcome, made.error, len(made.steps)) == (Outcome.ANSWERED, None, 2)
    assert (made.steps[0].call, made.steps[0].error) == (ToolCall("pay", {"order": 7}), shown)
    assert model.conversations[1][-1].content == f"Error: {shown}"
    assert store.get(made.id) == made


@pytest.mark.parametrize("effect", ["workspace", "world"])
def test_of_a_call_with_an_effect_that_ended_in_an_exception_the_effect_is_marked_as_unknown(
    tools: list[BaseTool], store: Store, effect: str
) -> None:
    paying = raising(TimeoutError("no reply"), effect=effect)
    made = done([call("pay", order=7), answer("I do not know.")], [paying, *tools], recorder=store, run_id="run-1")
    assert made.steps[0].error == f"pay raised TimeoutError: no reply. {EFFECT_UNKNOWN}"
    assert [step.effect_unknown for step in store.get("run-1").steps] == [True, False]
    assert store.open_intent("run-1") is None
    refusing = raising(ToolException("It is paid already."), effect=effect)
    made = done([call("pay", order=7), call("pay"), answer("It is paid.")], [refusing, *tools])
    assert [step.effect_unknown for step in made.steps] == [False, False, False]


def test_a_validation_that_fails_inside_a_tool_is_not_told_as_one_of_the_arguments(tools: list[BaseTool]) -> None:
    def status(order: int) -> str:
        """Ask the backend."""
        return Reply.model_validate({"state": "paid"}).status

    asking = StructuredTool.from_function(status, metadata={"effect": "read"})
    made = done([call("status", order=7), call("status", order="x"), answer("Sorry.")], [asking, *tools])
    first, second, _ = (step.error or "" for step in made.steps)
    assert first.startswith("status raised ValidationError: 1 validation error for Reply")
    assert second.startswith("order: Input should be a valid integer")


def test_what_the_model_is_shown_of_an_exception_is_short_masked_and_has_no_traceback(
    tools: list[BaseTool], caplog: pytest.LogCaptureFixture
) -> None:
    half_shown = "x" * (MAX_EXCEPTION - 5) + " ann@example.com"
    replies = [call("pay", order=7), answer("Sorry.")]
    with caplog.at_level(logging.DEBUG, "ratchet.run"):
        made = done(replies, [raising(OSError(half_shown)), *tools], scrubber=Scrubber())
    error = made.steps[0].error or ""
    assert len(error) < MAX_EXCEPTION + 40
    assert "ann" not in error
    assert "Traceback" not in error
    (logged,) = (record.getMessage() for record in caplog.records if record.name == "ratchet.run")
    assert "Traceback" in logged
    assert "in pay" in logged
    assert "ann@example.com" not in logged


def test_ctrl_c_during_a_tool_breaks_the_run_off_and_keeps_it_to_be_resumed(
    tools: list[BaseTool], store: Store
) -> None:
    interrupted = raising(KeyboardInterrupt(), effect="world")
    with pytest.raises(KeyboardInterrupt):
        done([call("look", order=1), call("pay", order=7)], [interrupted, *tools], recorder=store, run_id="run-1")
    kept = store.get("run-1")
    assert (kept.outcome, len(kept.steps)) == (None, 1)
    intent = store.open_intent("run-1")
    assert intent is not None
    assert intent.call == ToolCall("pay", {"order": 7})


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), SystemExit(0)], ids=repr)
def test_a_stream_ends_with_an_outcome_whatever_a_tool_raises(tools: list[BaseTool], fault: BaseException) -> None:
    model = ScriptedModel([call("pay", order=7), answer("Sorry.")])
    events = list(stream(TASK, model, [raising(fault), *tools]))
    assert events[-1].kind == "ended"
    assert events[-1].trajectory.outcome is Outcome.ANSWERED


def test_a_call_that_fails_the_same_way_three_times_ends_the_run_as_looping(tools: list[BaseTool]) -> None:
    made = done([call("pay", order=7)] * 3, [raising(TimeoutError("no reply")), *tools])
    assert (made.outcome, len(made.steps)) == (Outcome.LOOPING, 3)
    assert [step.notice for step in made.steps] == [None, REPEATED, REPEATED]
    other = [call("pay", order=number) for number in range(9)]
    made = done(other, [raising(TimeoutError("no reply")), *tools], options=Options(budget=Budget(steps=4)))
    assert (made.outcome, len(made.steps)) == (Outcome.OUT_OF_STEPS, 4)


def test_a_tool_that_has_only_a_coroutine_is_run(tools: list[BaseTool]) -> None:
    async def stock(item: str) -> str:
        """Say how many there are."""
        await asyncio.sleep(0)
        if item == "none":
            raise asyncio.CancelledError
        return f"{item}: 4"

    counting = StructuredTool.from_function(coroutine=stock, metadata={"effect": "read"})
    replies = [call("stock", item="tent"), call("stock", item="none"), call("stock"), answer("Four.")]

    async def inside_an_event_loop() -> Trajectory:
        return done(replies, [counting, *tools])

    for made in (done(replies, [counting, *tools]), asyncio.run(inside_an_event_loop())):
        assert made.outcome is Outcome.ANSWERED
        assert [(step.observation, step.error) for step in made.steps[:3]] == [
            ("tent: 4", None),
            ("", "stock raised CancelledError."),
            ("", "item: Field required"),
        ]


def test_a_result_that_has_no_text_is_an_error_of_its_step(tools: list[BaseTool]) -> None:
    def rows() -> Any:
        """List the rows."""
        return (number for number in range(3))

    error = "rows returned a generator object, which has no text to show; return a text."
    for effect, shown in (("read", error), ("world", f"{error} {EFFECT_UNKNOWN}")):
        listing = StructuredTool.from_function(rows, metadata={"effect": effect})
        made = done([call("rows"), answer("Sorry.")], [listing, *tools])
        assert (made.steps[0].error, made.steps[0].effect_unknown) == (shown, effect == "world")
        assert made.outcome is Outcome.ANSWERED


def test_our_own_failure_ends_the_run_as_crashed_with_the_error_recorded(tools: list[BaseTool], store: Store) -> None:
    class Full(Store):
        """A store that cannot keep the second step."""

        def add_step(self, run_id: str, index: int, step: Step) -> None:
            if index == 1:
                raise OSError("the disk is full")
            super().add_step(run_id, index, step)

    with Full(store.path) as full:
        made = done([call("look", order=1), call("look", order=2)], tools, recorder=full)
    assert made.outcome is Outcome.CRASHED
    assert made.error is not None
    assert "OSError: the disk is full" in made.error
    kept = store.get(made.id)
    assert (kept.outcome, kept.error, len(kept.steps)) == (Outcome.CRASHED, made.error, 1)


def test_a_model_that_fails_ends_the_run_as_crashed(tools: list[BaseTool]) -> None:
    made = done([call("look", order=1)], tools)
    assert made.outcome is Outcome.CRASHED
    assert made.error is not None
    assert ModelError.__name__ in made.error


@pytest.mark.parametrize(
    ("budget", "stepper", "outcome", "steps"),
    [
        (Budget(steps=3), Slow(), Outcome.OUT_OF_STEPS, 3),
        (Budget(steps=99, tokens=25), Slow(tokens=10), Outcome.OUT_OF_TOKENS, 3),
        (Budget(steps=99), Slow(end="length"), Outcome.OUT_OF_TOKENS, 0),
        (Budget(steps=99), Slow(end="timeout"), Outcome.OUT_OF_TIME, 0),
        (Budget(steps=99, seconds=0.05), Slow(seconds=0.03), Outcome.OUT_OF_TIME, 2),
    ],
)
def test_a_budget_that_is_used_up_ends_the_run_by_name(
    tools: list[BaseTool], budget: Budget, stepper: Stepper, outcome: Outcome, steps: int
) -> None:
    made = run(TASK, stepper, tools, options=Options(budget=budget))
    assert (made.outcome, len(made.steps)) == (outcome, steps)


def test_a_repeated_call_is_noticed_the_second_time_and_ends_the_run_the_third(tools: list[BaseTool]) -> None:
    model = ScriptedModel([call("look", order=1), call("look", order=2), call("look", order=1), call("look", order=1)])
    made = run(TASK, model, tools)
    assert [step.notice for step in made.steps] == [None, None, REPEATED, REPEATED]
    assert made.outcome is Outcome.LOOPING
    assert str(model.conversations[3][-1].content).endswith(REPEATED)


def test_three_steps_in_a_row_that_cannot_be_read_fail_the_run(tools: list[BaseTool]) -> None:
    hello, think, so = (AIMessage(text) for text in ("hello", "I think", "so"))
    made = done([hello, think, so], tools)
    assert (made.outcome, len(made.steps)) == (Outcome.FAILED, 3)
    assert made.steps[0].said == "hello"
    assert made.steps[0].error is not None
    again = done([hello, think, call("look", order=1), so, answer("Yes.")], tools)
    assert again.outcome is Outcome.ANSWERED


def test_a_step_written_as_text_is_read(tools: list[BaseTool]) -> None:
    text = '{"plan":["look"],"thought":"t","tool":"look","args":{"order":1}}'
    made = done([AIMessage(text), answer("Yes.")], tools)
    assert made.steps[0].observation == "Order 1 is on its way."


def test_a_cancelled_run_ends_within_its_step_and_keeps_what_was_done(tools: list[BaseTool], store: Store) -> None:
    cancelled = threading.Event()

    def stop(event: Event) -> None:
        if event.kind == "observed" and len(event.trajectory.steps) == 2:
            cancelled.set()

    made = run(TASK, Slow(), tools, recorder=store, cancelled=cancelled, on_event=stop)
    assert made.outcome is Outcome.CANCELLED
    assert len(store.get(made.id).steps) == 2
    cancelled = threading.Event()
    threading.Timer(0.1, cancelled.set).start()
    started = time.monotonic()
    made = run(TASK, Slow(seconds=30), tools, cancelled=cancelled)
    assert made.outcome is Outcome.CANCELLED
    assert time.monotonic() - started < 5


def test_events_come_in_order(tools: list[BaseTool]) -> None:
    events = list(stream(TASK, ScriptedModel([call("look", order=1, thought="Look."), answer("Yes.")]), tools))
    kinds = ["started", "text", "proposed", "observed", "proposed", "observed", "ended"]
    assert [event.kind for event in events] == kinds
    proposed, observed = events[2].step, events[3].step
    assert proposed is not None
    assert observed is not None
    assert (proposed.observation, observed.observation) == ("", "Order 1 is on its way.")
    assert events[-1].trajectory.outcome is Outcome.ANSWERED


def test_a_reader_of_the_stream_that_stops_early_cancels_the_run(tools: list[BaseTool], store: Store) -> None:
    events = stream(TASK, Slow(seconds=0.01), tools, recorder=store, options=Options(budget=Budget(steps=999)))
    for event in events:
        if event.kind == "observed":
            break
    events.close()  # type: ignore[attr-defined]
    assert store.get("last").outcome is Outcome.CANCELLED


def test_the_log_is_scrubbed_and_the_tool_gets_the_real_value(tools: list[BaseTool], store: Store) -> None:
    sent: list[str] = []

    def mail(address: str) -> str:
        """Send a mail."""
        sent.append(address)
        return f"Sent to {address}."

    mailing = StructuredTool.from_function(mail)
    task = Task("t-2", "Write to ann@example.com.", {"mail": "ann@example.com"})
    model = ScriptedModel([call("mail", address="<email_1>"), answer("Sent to <email_1>.")])
    made = run(task, model, [mailing, *tools], scrubber=Scrubber(), recorder=store)
    assert sent == ["ann@example.com"]
    assert made.steps[0].observation == "Sent to <email_1>."
    assert "ann@example.com" not in repr(store.get(made.id))
    assert "ann@example.com" not in repr(model.conversations)


def test_a_long_result_is_cut_and_says_so(tools: list[BaseTool]) -> None:
    def tell() -> str:
        """Tell a lot."""
        return "x" * 5000

    made = done([call("tell"), answer("Yes.")], [StructuredTool.from_function(tell), *tools])
    assert made.steps[0].observation.endswith("[cut: 2600 more characters]")


def test_the_intent_is_kept_before_the_tool_runs(tools: list[BaseTool], store: Store) -> None:
    seen: list[object] = []

    def peek() -> str:
        """Look into the store."""
        seen.append(store.open_intent("run-1"))
        return "seen"

    done(
        [call("peek"), answer("Yes.")],
        [StructuredTool.from_function(peek), *tools],
        recorder=store,
        run_id="run-1",
    )
    assert getattr(seen[0], "call", None) == ToolCall("peek", {})
    assert store.open_intent("run-1") is None


def test_of_a_call_that_has_no_effect_no_intent_is_kept(tools: list[BaseTool], store: Store) -> None:
    seen: list[object] = []

    def peek() -> str:
        """Look into the store."""
        seen.append(store.open_intent("run-1"))
        return "seen"

    reading = StructuredTool.from_function(peek, metadata={"effect": "read"})
    done([call("peek"), answer("Yes.")], [reading, *tools], recorder=store, run_id="run-1")
    assert seen == [None]
    assert len(store.get("run-1").steps) == 2
