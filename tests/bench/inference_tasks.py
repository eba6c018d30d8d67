"""What `bench-inference` has its contestants do: tickets of the demo desk, and long runs through a logbook.

Both are projects, so that every contestant gets the same tools, prompts and tasks; both come with weights in the two
forms that the contestants read. The tickets are the held-out ones, under an adapter that was tuned on others.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.cli import main as cli
from agent.config.project import Home, Project, find_project
from agent.llm.weights import load as weights
from agent.llm.weights.catalog import DEFAULT_MODEL, find_known
from agent.llm.weights.convert import packaged_file
from agent.records.run import Task
from agent.registry.registry import Adapter, Registry
from tuner.demo import demo
from tuner.evaluation.suite import Check, SuiteTask
from tuner.pipeline.promote import project_suite

ROOT = Path(__file__).resolve().parents[2]
LONG_STEPS = 16
VLLM_PACKAGES = ROOT / ".ratchet" / "bench-vllm"
"""vLLM asks for packages of other versions than ours."""
PAGE_WORDS = 60
_LONG_SETTINGS = f"""
[agent]
instructions = "You read a logbook and keep notes. Call next_page again and again, with a note of what you read."
max_steps = {LONG_STEPS}
max_tokens = 1000000
plan = false

[tools]
files = ["logbook.py"]
enabled = ["next_page", "close_book"]
"""
_LONG_TOOLS = f'''
"""A logbook of made-up pages, a new one at each call."""

import random
from typing import Annotated

from langchain_core.tools import StructuredTool
from pydantic import Field

WORDS = "wind tide harbour crew rope sail storm calm north south east west coal salt fish barrel lamp anchor".split()


def load_tools(context):
    chance = random.Random(context.task)
    count = 0

    def next_page(note: Annotated[str, Field(min_length=1, max_length=40)]) -> str:
        nonlocal count
        count += 1
        return f"Page {{count}}. " + " ".join(chance.choice(WORDS) for _ in range({PAGE_WORDS}))

    def close_book(seal: Annotated[str, Field(pattern="^SEAL-[0-9]{{9}}$")]) -> str:
        return seal

    # No page shows a seal, and it must be copied from one: so a run has all its steps.
    ends = {{"effect": "read", "ends": "answered", "copied": ["seal"]}}
    about = "The next page of the logbook; note what the last one said."
    return [
        StructuredTool.from_function(next_page, description=about, metadata={{"effect": "read"}}),
        StructuredTool.from_function(close_book, description="Close the logbook.", metadata=ends),
    ]
'''


@dataclass(frozen=True)
class Work:
    """Tasks of one project, and the adapter that does them."""

    project: Project
    adapter: Adapter | None
    tasks: Sequence[SuiteTask]

    @property
    def merged(self) -> Path:
        """Where the weights lie with the adapter in them, as transformers reads them, in float32."""
        return self.project.home.root / "merged" / (self.adapter.id if self.adapter else "base")


def tickets(home: Path, count: int) -> Work:
    """The first held-out tickets of the desk in `home`, which `prepare` made."""
    project = find_project(home / "desk", {})
    served = Registry(project.home.adapters).serving().adapter
    return Work(project, served, tuple(project_suite(project, limit=count)))


def long_runs(home: Path, count: int) -> Work:
    """Runs of 16 steps, each with a logbook of its own; the untuned base reads them."""
    project = find_project(home / "logbook", {})
    tasks = [
        SuiteTask(f"logbook-{number}", "logbook", Task(f"logbook-{number}", f"Read logbook {number}."), Check())
        for number in range(count)
    ]
    return Work(project, None, tasks)


SETS = {"tickets": tickets, "long": long_runs}


def prepare(home: Path) -> None:
    """Make both projects and their weights; a desk that is there, and serves an adapter, is kept."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "desk").is_dir() or tickets(home, 1).adapter is None:
        project = demo.prepare_desk(ROOT / "examples" / "desk", home)
        with demo.DemoWatcher() as watcher:
            demo.run_demo(project, demo.capture_commands(cli.main), demo.FULL, watcher)[1].close()
    book = home / "logbook"
    book.mkdir(exist_ok=True)
    (book / "ratchet.toml").write_text(_LONG_SETTINGS, encoding="utf-8")
    (book / "logbook.py").write_text(_LONG_TOOLS, encoding="utf-8")
    models = Home(book / ".ratchet").models
    if not models.exists():
        models.parent.mkdir(exist_ok=True)
        models.symlink_to(tickets(home, 1).project.home.models.resolve(), target_is_directory=True)
    for make in SETS.values():
        work = make(home, 1)
        if not (work.merged / "config.json").is_file():
            write_merged(work)


def write_merged(work: Work) -> None:
    """Write the project's base, its adapter merged into it, as a folder that transformers loads."""
    folder = weights.resolve_model(work.project.named(work.project.settings.model.base), work.project.home.models)
    model = weights.load_model(folder, device="cpu", dtype="float32")
    if work.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(work.adapter.folder)).merge_and_unload()
    shutil.rmtree(work.merged, ignore_errors=True)
    model.save_pretrained(str(work.merged))
    weights.load_tokenizer(folder).save_pretrained(str(work.merged))


def gguf_of(work: Work, kind: str) -> Path:
    """The same weights as llama.cpp reads them, in this many bits; written once."""
    from tests.bench.llamacpp import write_gguf

    target = work.merged.with_name(f"{work.merged.name}-{kind}.gguf")
    if not target.is_file():
        beside = target.with_suffix(".tmp")
        entry = find_known(DEFAULT_MODEL, "model")
        assert entry is not None
        source = packaged_file(entry)
        write_gguf(source, work.adapter.folder if work.adapter else None, beside, kind=kind)
        beside.replace(target)
    return target


def unlike_anything(count: int, vocabulary: int, seed: int) -> list[int]:
    """Random ids, to warm up with."""
    chance = random.Random(seed)
    return [chance.randrange(vocabulary) for _ in range(count)]
