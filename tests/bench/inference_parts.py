"""The parts of `bench-inference` that look at our engine alone; each is done in a process of its own."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from agent.llm.benchmark import measure_speed
from agent.llm.engine.session import Request
from agent.llm.prompt.render import Frame, messages
from agent.llm.prompt.tool_spec import describe
from agent.llm.scripted import ScriptedModel, answer, call
from agent.llm.weights.precision import faster_precision
from agent.records.run import Provenance, Step, Task, Trajectory
from agent.run.limits import Budget
from agent.run.loop import run
from agent.run.state import Options, Unrecorded
from agent.runtime import Runtime
from agent.storage.store import Store
from tests.bench import inference_bits, inference_sides, inference_tasks
from tools.basics import answer as answer_tool
from tuner.evaluation.evaluate import Evaluation, evaluate
from tuner.evaluation.suite import Suite, SuiteTask

GROWN_STEPS = 32
GROWN_RUNS = 5
NEW_TOKENS = 96
"""Of an observation in the runs that show how a step's time grows."""
TOGETHER = 48
AT_ONCE = 8
LOGGED_STEPS = 15
LOGGED_RUNS = 20
COMPARED = 40
"""Tickets whose logits are compared."""


def growth(home: Path) -> dict[str, Any]:
    """Seconds of each of 32 steps that all bring as many new tokens: medians over a few runs."""
    from langchain_core.tools import StructuredTool
    from pydantic import BaseModel, Field

    class Arguments(BaseModel):
        code: str = Field(pattern="^[0-9]{8}$")

    tool = StructuredTool.from_function(lambda code: code, name="look", description="Look.", args_schema=Arguments)
    work = inference_tasks.long_runs(home, 1)
    with Runtime(work.project) as runtime:
        model: Any = runtime.stepper(None)
        frame = Frame("Look again and again.", (describe(tool),), plan=False, thought=False)
        body = model.renderer.decode(model.renderer.encode("wind tide harbour crew rope sail " * 40)[:NEW_TOKENS])
        every = []
        for number in range(GROWN_RUNS):
            done = Trajectory(f"grown-{number}", Task("t", f"Look, {number}."), Provenance(), "")
            seconds = []
            for _ in range(GROWN_STEPS):
                limits: dict[str, Any] = {"max_tokens": 200, "max_seconds": 600.0, "cancelled": threading.Event()}
                started = time.perf_counter()
                made = model.propose(done, frame, temperature=0.0, seed=0, **limits)
                seconds.append(time.perf_counter() - started)
                step = Step(made.call, body, token_ids=made.token_ids, usage=made.usage)
                done = done.with_step(step)
            every.append(seconds)
    grown = [statistics.median(run[place] for run in every) for place in range(GROWN_STEPS)]
    return {
        "step32_over_step2": grown[31] / grown[1],
        "seconds": grown,
        "read": [step.usage.prompt - step.usage.cached for step in done.steps],
        "prompt": [step.usage.prompt for step in done.steps],
    }


def together(home: Path) -> dict[str, Any]:
    """Tickets a minute of one session and of eight at once, in turn, twice."""
    work = inference_tasks.tickets(home, TOGETHER)
    others = inference_tasks.tickets(home, TOGETHER + AT_ONCE).tasks[TOGETHER:]
    adapter = work.adapter.id if work.adapter else None
    minutes: dict[int, list[float]] = {1: [], AT_ONCE: []}
    solved: dict[int, float] = {}
    for _ in range(2):
        for at_once in minutes:
            # Opened anew, so that nothing of one turn is known in the next.
            with Runtime(work.project) as runtime:
                _evaluation(runtime, replace(work, tasks=others), adapter, at_once)
                started = time.perf_counter()
                made = _evaluation(runtime, work, adapter, at_once)
                minutes[at_once].append((time.perf_counter() - started) / 60)
                solved[at_once] = made.success
    rates = {at_once: TOGETHER / statistics.mean(took) for at_once, took in minutes.items()}
    return {
        "batch8_ratio": rates[AT_ONCE] / rates[1],
        "tasks_per_minute_alone": rates[1],
        "tasks_per_minute_together": rates[AT_ONCE],
        "solved_alone": solved[1],
        "solved_together": solved[AT_ONCE],
    }


def overhead(home: Path) -> dict[str, Any]:
    """Milliseconds that loop and log add to a step, with a model that needs none."""
    from langchain_core.tools import StructuredTool

    def look(order: int) -> str:
        """Look an order up."""
        return f"Order {order} is on its way, and arrives in {order} days."

    tools = [StructuredTool.from_function(look, metadata={"effect": "read"}), answer_tool()]
    options = Options(budget=Budget(steps=LOGGED_STEPS + 1, tokens=10**9))
    took: dict[str, list[float]] = {"logged": [], "unlogged": []}
    with tempfile.TemporaryDirectory(dir=home) as folder, Store(Path(folder) / "log.db") as store:
        for number in range(LOGGED_RUNS):
            for name in took:
                recorder = store if name == "logged" else Unrecorded()
                script = [call("look", order=step, thought="Look.") for step in range(LOGGED_STEPS)]
                model = ScriptedModel([*script, answer("Done.")])
                started = time.perf_counter()
                done = run(Task(f"t{number}", "Look."), model, tools, options=options, recorder=recorder)
                took[name].append(1000 * (time.perf_counter() - started) / len(done.steps))
    return {
        "overhead_ms_per_step": statistics.median(took["logged"]),
        "unlogged_ms_per_step": statistics.median(took["unlogged"]),
        "steps": LOGGED_STEPS + 1,
    }


def speed(home: Path) -> dict[str, Any]:
    """What `ratchet bench` measures."""
    work = inference_tasks.tickets(home, 1)
    with Runtime(work.project) as runtime:
        model: Any = runtime.stepper(None)
        found = measure_speed(model.engine)
    return {
        **asdict(found),
        "decode_tokens_per_s": found.decode_tokens_per_second,
        "prompt_tokens_per_s": found.prompt_tokens_per_second,
        "share_of_bandwidth_limit": found.share_of_memory_limit,
        "known_prefix_first_token_ratio": found.known_first_token_share,
    }


def quality(home: Path) -> dict[str, Any]:
    """Accuracy on all held-out tickets in float32 and in what is served here, and how alike the logits are."""
    import torch

    work = inference_tasks.tickets(home, 1000)
    adapter = work.adapter.id if work.adapter else None
    served = faster_precision("cpu")
    success: dict[str, float] = {}
    logits: dict[str, Any] = {}
    runs: dict[str, Evaluation] = {}
    for dtype in ("float32", served):
        settings = work.project.settings
        project = replace(work.project, settings=replace(settings, model=replace(settings.model, dtype=dtype)))
        with Runtime(project) as runtime:
            runs[dtype] = _evaluation(runtime, work, adapter, settings.model.max_sessions)
            success[dtype] = runs[dtype].success
            logits[dtype] = _logits(runtime, work, adapter)
    pairs = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*logits.values(), strict=True)]
    agree = sum(bool(one.argmax() == other.argmax()) for one, other in zip(*logits.values(), strict=True))
    return {
        "quality_loss_points": 100 * (success["float32"] - success[served]),
        "served": served,
        "tickets": len(work.tasks),
        "solved_float32": success["float32"],
        "solved_served": success[served],
        "logit_correlation": float(torch.stack(pairs).mean()),
        "same_likeliest": agree / len(pairs),
    }


def dtype(home: Path) -> dict[str, Any]:
    """In which precision `generate` of transformers is faster here, as an agent's step uses it."""
    import torch
    from transformers import AutoModelForCausalLM

    work = inference_tasks.tickets(home, 1)
    took = {}
    for name in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(str(work.merged), dtype=getattr(torch, name)).eval()
        ids = inference_tasks.unlike_anything(500, 1000, 1)
        inference_sides.continue_greedily(model, ids, 8, inference_sides.NEVER)
        started = time.perf_counter()
        inference_sides.continue_greedily(model, ids, 32, inference_sides.NEVER)
        took[name] = time.perf_counter() - started
    return {"dtype": min(took, key=lambda name: took[name]), "seconds": took}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "growth": growth,
    "together": together,
    "overhead": overhead,
    "speed": speed,
    "quality": quality,
    "bits": inference_bits.bits,
    "dtype": dtype,
}
METRICS = {
    "growth": ("step32_over_step2",),
    "together": ("batch8_ratio",),
    "overhead": ("overhead_ms_per_step",),
    "speed": (
        "decode_tokens_per_s",
        "prompt_tokens_per_s",
        "share_of_bandwidth_limit",
        "known_prefix_first_token_ratio",
    ),
    "quality": ("quality_loss_points",),
}
"""The figures of each part that the results name."""


def _evaluation(runtime: Runtime, work: inference_tasks.Work, adapter: str | None, at_once: int) -> Evaluation:
    def run_one(task: SuiteTask, workspace: Path) -> Trajectory:
        done = runtime.run(task.task, adapter=adapter, tools=task.tools, workspace=workspace, recorder=Unrecorded())
        return runtime.reveal(done)

    runtime.stepper(adapter)
    return evaluate(
        Suite(tuple(work.tasks)),
        run_one,
        workspaces=runtime.home.workspaces,
        pristine=work.project.folder,
        concurrency=at_once,
    )


def _logits(runtime: Runtime, work: inference_tasks.Work, adapter: str | None) -> list[Any]:
    """Of the first thing said about each of the first tickets."""
    model: Any = runtime.stepper(adapter)
    frame = runtime.frame()
    found: list[Any] = []
    for task in work.tasks[:COMPARED]:
        ids = model.renderer.prompt(messages(Trajectory("t", task.task, Provenance(), ""), frame))
        heard = partial(_keep, found)
        model.engine.generate(Request(ids, inference_sides.NEVER, max_new=1, adapter=adapter, on_logits=heard))
    return found


def _keep(found: list[Any], logits: Any) -> None:
    found.append(logits.clone())
