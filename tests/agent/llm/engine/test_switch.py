"""An adapter is switched while runs go on: each ends on what it began with, and what is served is what was made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from langchain_core.tools import BaseTool, StructuredTool

from agent.config.project import Home, Project
from agent.config.settings import Settings
from agent.errors import LivenessError
from agent.llm.chat_model import LocalModel
from agent.records.run import Outcome, Task, Trajectory
from agent.registry.artifact import seal
from agent.registry.registry import Adapter, State
from agent.run.limits import Budget
from agent.run.loop import run
from agent.run.state import Options
from agent.runtime import Runtime

pytestmark = pytest.mark.slow
TASK = Task("t", "Wait until my order 48213 is ready.")
AT = "2026-05-14T10:00:00.000+00:00"


def make_adapter(folder: Path, model: LocalModel, *, seed: int) -> None:
    """A LoRA of random tensors on the queries, as PEFT writes one, sealed."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.engine.model.named_modules():
        if name.endswith("q_proj"):
            for part, shape in (("A", (4, module.in_features)), ("B", (module.out_features, 4))):
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = 0.1 * torch.randn(shape, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(str(folder))
    seal(
        folder,
        id=folder.name,
        base=model.base,
        base_revision=model.revision,
        dataset_hash="0" * 64,
        parent=None,
        tuning="tuning-1",
        created_at=AT,
        code_version="0",
    )


@pytest.fixture(scope="module")
def runtime(local_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    folder = tmp_path_factory.mktemp("project")
    project = Project(folder, Home(folder / ".ratchet"), Settings())
    runtime = Runtime(project, model=local_model)
    for number, name in enumerate(("red", "blue")):
        make_adapter(project.home.adapters / name, local_model, seed=number)
        runtime.registry.add(project.home.adapters / name)
        runtime.registry.transition(name, State.GATED, "made for this test", AT)
    return runtime


def waiting(wait: Callable[[], str]) -> BaseTool:
    return StructuredTool.from_function(func=wait, name="wait", description="Wait.", metadata={"effect": "read"})


def two_steps(runtime: Runtime, adapter: str | None, wait: Callable[[], str]) -> Trajectory:
    """A run that has no choice but to wait twice."""
    options: Options = replace(runtime.options, budget=Budget(steps=2))
    return run(TASK, runtime.stepper(adapter), [waiting(wait)], options=options, recorder=runtime.store)


def said(trajectory: Trajectory) -> list[tuple[int, ...]]:
    return [step.token_ids for step in trajectory.steps]


def test_a_run_ends_on_what_it_began_with_and_the_next_uses_the_adapter_that_was_promoted(runtime: Runtime) -> None:
    alone = {name: two_steps(runtime, name, lambda: "It is ready.") for name in (None, "red", "blue")}
    assert len({str(said(one)) for one in alone.values()}) == 3, "the adapters change nothing; this shows nothing"
    begun, go = threading.Event(), threading.Event()

    def held() -> str:
        begun.set()
        assert go.wait(120)
        return "It is ready."

    registry = runtime.registry
    served: dict[str | None, Adapter] = {one.id: one for one in registry.list()}
    with ThreadPoolExecutor(2) as pool:
        old = pool.submit(two_steps, runtime, "active", held)
        assert begun.wait(120)
        registry.promote("red", "for the test", AT)
        red = two_steps(runtime, "active", lambda: "It is ready.")
        begun.clear()
        under_red = pool.submit(two_steps, runtime, "active", held)
        assert begun.wait(120)
        registry.promote("blue", "for the test", AT)
        blue = two_steps(runtime, "active", lambda: "It is ready.")
        go.set()
        finished = {None: old.result(120), "red": under_red.result(120)}

    for name, ended in (*finished.items(), ("red", red), ("blue", blue)):
        assert ended.outcome is Outcome.OUT_OF_STEPS
        assert said(ended) == said(alone[name])
        assert ended.provenance.adapter == name
        assert ended.provenance.adapter_hash == (None if name is None else served[name].tensors_sha256)
        assert runtime.store.get(ended.id) == ended
    registry.rollback("for the test", AT)
    registry.rollback("for the test", AT)
    assert said(two_steps(runtime, "active", lambda: "It is ready.")) == said(alone[None])


def test_tensors_that_are_not_those_of_the_manifest_are_never_served(runtime: Runtime, local_model: LocalModel) -> None:
    red, blue = runtime.registry.get("red"), runtime.registry.get("blue")
    with pytest.raises(LivenessError, match=r"in memory, .* expected"):
        local_model.on_adapter("purple", folder=blue.folder, tensors_sha256=red.tensors_sha256)
    assert "purple" not in local_model.engine.adapters


@pytest.fixture(scope="module", autouse=True)
def _closed(runtime: Runtime) -> Iterator[None]:
    yield
    runtime.close()
