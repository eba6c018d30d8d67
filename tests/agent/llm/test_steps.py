"""A thousand steps of the untuned base at a high temperature: every one is a step, and is what it says."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from langchain_core.tools import BaseTool

from agent.llm.chat_model import LocalModel
from agent.llm.prompt.render import Frame
from agent.llm.prompt.step_grammar import ParsedStep, parse_step, write_step
from agent.llm.step_model import Proposal
from agent.llm.weights.catalog import DEFAULT_MODEL
from agent.records.run import Provenance, Step, Task, ToolCall, Trajectory
from agent.run.state import Options
from agent.run.tools import make_frame
from agent.text.quotes import cited_labels, match_quotes
from tools.context import Passage, ToolContext
from tools.loading import load_tools

DESK = Path(__file__).parents[3] / "examples" / "desk"
STEPS = 1000
SEEDS = 10
BLOCK = 20
THREADS = 32
TEMPERATURE = 1.5


def passages(count: int) -> tuple[Passage, ...]:
    return tuple(
        Passage(label, f"p{label}", "returns.md", "Returns", f"Gear may come back within {30 * label} days.")
        for label in range(1, count + 1)
    )


BEFORE: tuple[tuple[Step, ...], ...] = (
    (),
    (Step(ToolCall("list_orders", {}), "Tent: 48213 shipped", thought="Which order is it?", plan=("look",)),),
    (Step(ToolCall("get_order", {"order_id": "48213"}), error="There is no order 48213.", thought="Look."),),
    (
        Step(
            ToolCall("search_knowledge", {"query": "returns"}),
            "[1] returns.md > Returns\nGear may come back within 30 days.",
            thought="The articles know.",
            plan=("search", "answer"),
            passages=passages(3),
        ),
    ),
)
"""What happened before the step: nothing, a success, an error (so a plan is due), passages to be cited."""


@pytest.fixture(scope="module")
def model(models_folder: Path) -> Iterator[LocalModel]:
    """The untuned base, with a place in the pass for every thread."""
    model = LocalModel.load(DEFAULT_MODEL, models_folder, max_sessions=THREADS)
    yield model
    model.close()


def desk_tools(workspace: Path, *, as_set: bool) -> list[BaseTool]:
    """The desk's tools, held to what was shown as its settings have it or free to say anything."""
    return load_tools(
        [DESK / "desk_tools.py"], ToolContext(workspace, DESK), copied_queries=as_set, quoted_answers=as_set
    )


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    """With thoughts and plans, with one of them, and with neither."""
    settings = tomllib.loads((DESK / "ratchet.toml").read_text("utf-8"))
    assert settings["agent"]["quoted_answers"]
    assert settings["memory"]["copied_queries"]
    options = Options(instructions=settings["agent"]["instructions"])
    workspace = tmp_path_factory.mktemp("workspace")
    shapes = [(True, True, True), (False, True, False), (True, False, False), (False, False, True)]
    return [
        make_frame(desk_tools(workspace, as_set=as_set), replace(options, plan=plan, thought=thought))
        for plan, thought, as_set in shapes
    ]


def tickets() -> list[Task]:
    lines = (DESK / "tickets" / "train.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Task(row["id"], row["task"]["text"], row["task"]["facts"]) for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_of_a_thousand_steps_at_temperature_1_5_every_one_parses_fits_its_schema_and_is_written_back_the_same(
    model: LocalModel, frames: list[Frame], tmp_path: Path
) -> None:
    random.seed(0)
    tasks = tickets()
    # Each prompt is asked with several seeds, a block of prompts at a time so that they are still known when
    # they come again: most of the time then goes into steps and not into reading.
    prompts = [
        (frames[number % len(frames)], random.choice(BEFORE), random.choice(tasks)) for number in range(STEPS // SEEDS)
    ]
    asked = [
        prompt for at in range(0, len(prompts), BLOCK) for _ in range(SEEDS) for prompt in prompts[at : at + BLOCK]
    ]
    assert len(asked) == STEPS

    def propose(number: int) -> Proposal:
        frame, before, task = asked[number]
        return model.propose(
            Trajectory("run", task, Provenance(), "", before),
            frame,
            temperature=TEMPERATURE,
            seed=number,
            max_tokens=4000,
            max_seconds=600.0,
            cancelled=Event(),
        )

    with ThreadPoolExecutor(THREADS) as pool:
        proposals = list(pool.map(propose, range(STEPS)))

    by_name = {tool.name: tool for tool in desk_tools(tmp_path, as_set=False)}
    called = set()
    for (frame, before, task), proposal in zip(asked, proposals, strict=True):
        check(model, frame, task, before, proposal)
        assert proposal.call is not None
        called.add(proposal.call.name)
        schema: Any = by_name[proposal.call.name].get_input_schema()
        schema.model_validate(dict(proposal.call.arguments))
    assert len(called) >= 10, f"only {called} were called; this shows little"


def check(model: LocalModel, frame: Frame, task: Task, before: tuple[Step, ...], proposal: Proposal) -> None:
    """What holds of every step: its text is canonical, its ids spell that text, its form is the one due."""
    assert proposal.finish_reason == "stop"
    assert proposal.error is None
    assert proposal.call is not None
    assert proposal.token_ids[-1] == model.renderer.end_of_turn
    assert model.renderer.end_of_turn not in proposal.token_ids[:-1]
    spelled = bytes_of(model, proposal.token_ids[:-1])
    said = ParsedStep(proposal.call, proposal.thought, proposal.plan)
    assert write_step(said).encode() == spelled
    assert parse_step(spelled.decode()) == said
    shape = frame.shape(task, before)
    assert bool(proposal.plan) == shape.plan
    assert bool(proposal.thought) == shape.thought
    if proposal.call.name == "answer":
        cited = list(proposal.call.arguments.get("citations", []))
        assert set(cited) <= set(shape.labels)
        if any(tool.quoted for tool in shape.tools):
            made_of = match_quotes(proposal.call.arguments["text"], shape.quotes)
            assert made_of is not None
            assert cited == cited_labels(made_of)


def bytes_of(model: LocalModel, ids: tuple[int, ...]) -> bytes:
    """The bytes of ids, put together from the vocabulary itself and not by the decoder under test."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}
    pieces = model.renderer.tokenizer.convert_ids_to_tokens(list(ids))
    return bytes(alphabet[character] for piece in pieces for character in piece)
