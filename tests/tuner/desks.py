"""A small desk for tests: a store room with tools to find, book and mail, and tickets with solutions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from agent.cli.main import main
from agent.config.project import Project, find_project
from agent.llm.prompt.render import Frame
from agent.llm.step_model import Proposal
from agent.records.run import Provenance, ToolCall, Trajectory
from agent.runtime import Runtime
from tests.tuner.tiny import save_base
from tuner.demo.reviewer import Review, Reviewer, as_shown, load_tickets, resolve_citations
from tuner.evaluation.suite import SuiteTask

TOOLS = '''
"""The tools of a store room."""

import sqlite3
from contextlib import closing
from typing import Literal

from langchain_core.tools import ToolException, tool

BOXES = {"lamp": "box 3", "tent": "box 1", "rope": "box 2", "axe": "box 4"}


def load_tools(context):
    @tool
    def find(item: Literal["lamp", "tent", "rope", "axe"]) -> str:
        """Say where a thing is."""
        return BOXES[item]

    @tool
    def book(box: Literal[1, 2, 3, 4]) -> str:
        """Book a box."""
        with closing(sqlite3.connect(context.workspace / "room.db")) as room, room:
            room.execute("create table if not exists booked (box integer)")
            if room.execute("select 1 from booked where box = ?", (box,)).fetchone():
                raise ToolException(f"box {box} is booked")
            room.execute("insert into booked values (?)", (box,))
        return "booked"

    @tool
    def mail(address: str) -> str:
        """Mail a receipt."""
        with (context.workspace / "sent.txt").open("a") as file:
            file.write(address + "\\\\n")
        return "sent"

    find.metadata = {"effect": "read"}
    book.metadata = mail.metadata = {"effect": "workspace"}
    return [find, book, mail]
'''

BOXES = {"lamp": 3, "tent": 1, "rope": 2, "axe": 4}
PHRASES = ("Get me the {}.", "I need the {}.", "Where is my {}?", "Book the {}, please.")


def ticket(identifier: str, item: str, phrase: str, *, plan: bool = True, thought: bool = True) -> dict[str, Any]:
    """Return a row of a tickets file: find, book, answer."""
    box = BOXES[item]
    calls: list[tuple[str, str, dict[str, Any]]] = [
        (f"Find the {item}.", "find", {"item": item}),
        (f"It is in box {box}.", "book", {"box": box}),
        ("Say so.", "answer", {"text": f"Box {box} is yours.", "citations": []}),
    ]
    solution = [{"thought": said if thought else "", "tool": tool, "args": args} for said, tool, args in calls]
    if plan:
        solution[0]["plan"] = ["find it", "book its box"]
    check = {
        "calls": [{"tool": "book", "args": {"box": box}}],
        "state": [{"database": "room.db", "query": "select box from booked", "equals": [[box]]}],
        "must": [f"box {box}"],
    }
    return {
        "id": identifier,
        "group": item,
        "task": {"text": phrase.format(item)},
        "check": check,
        "solution": solution,
    }


def mail_ticket(identifier: str, address: str) -> dict[str, Any]:
    """Return a ticket with personal data, which is masked in the model's input."""
    calls: list[tuple[str, dict[str, Any]]] = [
        ("mail", {"address": address}),
        ("answer", {"text": f"Sent to {address}.", "citations": []}),
    ]
    solution = [{"thought": f"Mail {address}.", "tool": tool, "args": args} for tool, args in calls]
    solution[0]["plan"] = ["mail it"]
    check = {"calls": [{"tool": "mail", "args": {"address": address}}], "must": [address]}
    facts = {"cc": "boss@shop.example"}
    task = {"text": f"Send my receipt to {address}, please.", "facts": facts}
    return {"id": identifier, "group": "mail", "task": task, "check": check, "solution": solution}


def make_desk(folder: Path, tickets: Sequence[dict[str, Any]], settings: str = "") -> Project:
    """Make a project folder with the store room's tools, training tickets, and the same as held-out tickets."""
    (folder / "tickets").mkdir(parents=True)
    (folder / "room_tools.py").write_text(TOOLS)
    (folder / "ratchet.toml").write_text(
        '[tools]\nfiles = ["room_tools.py"]\nenabled = ["find", "book", "mail", "answer", "hand_over"]\n'
        f'[gate]\nsuite = "tickets/held_out.jsonl"\nmin_tasks = 1\n{settings}'
    )
    held_out = [
        {**{key: value for key, value in row.items() if key != "solution"}, "id": f"h-{row['id']}"} for row in tickets
    ]
    for name, rows in (("train", tickets), ("held_out", held_out)):
        (folder / "tickets" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return find_project(folder, {})


class Clumsy:
    """A model that solves every ticket but makes a mistake in the steps of `wrong`."""

    def __init__(self, tickets: Sequence[SuiteTask], wrong: Collection[int], *, gives_up: bool = False) -> None:
        self._tickets = {ticket.id: ticket for ticket in tickets}
        self._wrong = wrong
        self._gives_up = gives_up

    def provenance(self) -> Provenance:
        return Provenance(base="clumsy", base_revision="r1")

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
        index = len(trajectory.steps)
        if self._gives_up:
            return Proposal(None, text="{", error="cut off", finish_reason="length")
        if index in self._wrong:
            return Proposal(ToolCall("book", {"box": 4 - index}), "Perhaps this.", ("try",) if index == 0 else ())
        ticket = self._tickets[trajectory.task.id]
        right = as_shown(ticket.solution[index], ticket, trajectory)
        arguments = resolve_citations(right.call.arguments, trajectory, index)
        return Proposal(ToolCall(right.call.name, arguments), right.thought, right.plan)


TINY_ROWS = [
    ticket(f"t-{item}-{number}", item, PHRASES[number], plan=False, thought=False)
    for item in BOXES
    for number in range(2)
]

TINY_SETTINGS = """
[model]
base = "{base}"
threads = 1
max_sessions = 4
[agent]
plan = false
thought = false
max_steps = 4
max_tokens = 1500
instructions = "Help."
[memory]
recall = 0
[tuning]
learning_rate = 5e-3
epochs = 70
min_steps = 1
batch_targets = 100
validation_share = 0.0
precision = "float32"
"""
"""Settings of a desk of `TINY_ROWS` with the base of `save_tiny_base`, which can memorise them."""


def review_all(runtime: Runtime) -> Review:
    """Let the scripted reviewer review the desk's training tickets with the commands that people use."""
    folder = runtime.project.folder
    reviewer = Reviewer(
        runtime,
        lambda words: main(["--project", str(folder), "--quiet", *words]),
        corrections=100,
        progress=lambda done, of: None,
    )
    return reviewer.review(load_tickets(folder / "tickets" / "train.jsonl"), at_once=4)


def save_tiny_base(folder: Path) -> Path:
    texts = [TOOLS, *(json.dumps(row, separators=(",", ":")) for row in TINY_ROWS)] * 3
    return save_base(folder / "tiny", texts, hidden_size=128, intermediate_size=192)
