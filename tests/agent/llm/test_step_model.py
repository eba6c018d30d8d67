"""Any langchain-core chat model can drive the agent."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage

from agent.errors import ModelError
from agent.llm.prompt.render import Frame
from agent.llm.prompt.tool_spec import ToolSpec
from agent.llm.scripted import ScriptedModel, answer, call
from agent.llm.step_model import ChatStepper, Proposal, Stepper, as_stepper
from agent.records.run import Provenance, Task, ToolCall, Trajectory, Usage

FRAME = Frame("You help.", (ToolSpec("look", "Look.", {"type": "object", "properties": {}}),))
RUN = Trajectory("r", Task("t", "Where is it?"), Provenance(), "")


def propose(stepper: Stepper, **options: Any) -> Proposal:
    limits: dict[str, Any] = {"max_tokens": 100, "max_seconds": 60.0, "cancelled": threading.Event()}
    return stepper.propose(RUN, FRAME, temperature=0.0, seed=0, **limits, **options)


def test_a_tool_call_is_a_step_with_its_plan_and_thought() -> None:
    received: list[str] = []
    model = ScriptedModel([call("look", plan=["look", "answer"], thought="I look first.", id="7")])
    made = propose(as_stepper(model), on_text=received.append)
    assert made.call == ToolCall("look", {"id": "7"})
    assert (made.plan, made.thought, made.error) == (("look", "answer"), "I look first.", None)
    assert received == ["Plan: look; answer\nI look first."]


def test_text_is_read_as_a_step_where_a_model_calls_no_tools() -> None:
    stepper = as_stepper(FakeListChatModel(responses=['{"thought":"Hm.","tool":"look","args":{}}', "Hello!"]))
    assert propose(stepper).call == ToolCall("look", {})
    made = propose(stepper)
    assert made.call is None
    assert made.text == "Hello!"
    assert made.error is not None
    assert made.error.startswith("This is not a step: not one JSON object")


def test_tokens_are_counted_where_the_model_counts_them() -> None:
    used: Any = {"input_tokens": 30, "output_tokens": 7, "total_tokens": 37}
    reply = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}], usage_metadata=used)
    assert propose(as_stepper(ScriptedModel([reply]))).usage == Usage(prompt=30, sampled=7)


def test_the_provenance_names_the_model() -> None:
    assert as_stepper(ScriptedModel([])).provenance().base == "scripted"


def test_a_stepper_is_returned_unchanged() -> None:
    stepper = ChatStepper(ScriptedModel([answer("Yes.")]))
    assert as_stepper(stepper) is stepper


def test_errors_of_the_model_class_are_not_reported_as_steps() -> None:
    with pytest.raises(ModelError, match="0 replies"):
        propose(as_stepper(ScriptedModel([])))
