"""The public names: what other code may hold on to. A name that goes or moves is found here first."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from agent import Agent

PUBLIC: dict[str, tuple[str, ...]] = {
    "agent.errors": (
        "RatchetError",
        "SettingsError",
        "TaskError",
        "RecordError",
        "StoreError",
        "FeedbackError",
        "ModelError",
        "WeightsError",
        "PromptError",
        "GrammarError",
        "AdapterError",
        "ToolsError",
        "MemoryIndexError",
        "TuningError",
        "DatasetError",
        "LivenessError",
    ),
    "agent.records.run": ("Outcome", "Step", "Task", "ToolCall", "Trajectory"),
    "agent.records.feedback": ("Correction", "OutputCorrection", "Rating"),
    "agent.storage.database": ("open_engine", "prepare_schema", "reading", "writing"),
    "agent.registry.artifact": (
        "Manifest",
        "add_documents",
        "hash_tensors",
        "seal",
        "tensors_hash",
        "verify",
    ),
    "agent.registry.registry": ("Adapter", "Change", "Registry", "Serving", "State", "TRANSITIONS"),
    "agent.config.settings": ("Settings",),
    "agent.config.project": ("Home", "Project", "find_project"),
    "agent.config.reader": ("load_settings", "settings_template"),
    "agent.llm.weights.catalog": ("CATALOG", "DEFAULT_ENCODER", "DEFAULT_MODEL", "KnownWeights"),
    "agent.llm.weights.load": (
        "ModelEntry",
        "ModelFolder",
        "list_models",
        "load_model",
        "load_tokenizer",
        "resolve_encoder",
        "resolve_model",
    ),
    "agent.cli.doctor": ("Finding", "diagnose"),
    "tuner.tasks.api": ("load", "train"),
    "tuner.tasks.fit.zero_shot": ("measure", "open_untrained"),
    "tuner.tasks.data.records": (
        *("AnswerExample", "AnswerSpan", "ChatTurn", "ClassifyExample", "ConverseExample", "EmbedExample"),
        *("RelateExample", "Span", "TagExample", "WriteExample"),
    ),
    "tuner.tasks.feedback.agent_tools": ("TaskTools",),
    "tuner.api": ("open_runtime",),
    "agent.registry.task_models": ("find_task", "served_folder", "versions"),
    "agent.api.runs": ("RunHandle", "Runs"),
    "agent.api.adapters": ("Adapters", "Candidate", "EncoderAdapters", "Promotion", "Suites"),
    "agent.api.documents": ("Documents",),
    "agent.api.tasks": ("Tasks",),
    "tools.marks": ("Copied", "Quoted", "tool"),
    "tools.functions": ("Tool", "make_tool"),
    "tools.context": ("Passage", "Retriever", "ToolContext"),
}


EXPORTED: dict[str, tuple[str, ...]] = {
    "agent": (
        *("Agent", "Candidate", "Event", "Outcome", "Promotion", "RatchetError", "RunHandle", "Runtime"),
        *("ScriptedModel", "Step", "ToolCall", "Trajectory"),
    ),
    "tuner": (
        *(
            "GateResult",
            "Progress",
            "Suite",
            "Tuning",
            "evaluate_adapter",
            "load",
            "load_suite",
            "open_runtime",
            "promote",
        ),
        *("train", "tune"),
    ),
    "tools": (
        *("Copied", "Passage", "Quoted", "Retriever", "Tool", "ToolContext", "ToolsLoadError", "answer", "calculator"),
        *("hand_over", "load_tools", "make_tool", "search_knowledge", "tool"),
    ),
}
"""All that the packages themselves export: a name that is added is pinned here too."""

AGENT: tuple[str, ...] = (
    *("arun", "astream", "close", "evaluate", "forget", "run", "runtime", "search_settings", "stream", "tune"),
)


@pytest.mark.parametrize("package", sorted(EXPORTED))
def test_a_package_exports_these_names_and_no_others(package: str) -> None:
    loaded = importlib.import_module(package)
    assert sorted(loaded.__all__) == sorted(EXPORTED[package])
    assert set(EXPORTED[package]) <= set(dir(loaded))
    things = [getattr(loaded, name) for name in EXPORTED[package]]
    assert [thing for thing in things if callable(thing) and not thing.__doc__] == []
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        loaded.nothing  # noqa: B018


@pytest.mark.parametrize("package", sorted(EXPORTED))
def test_a_package_is_typed(package: str) -> None:
    folder = Path(str(importlib.import_module(package).__file__)).parent
    assert (folder / "py.typed").is_file()


def test_the_agent_has_these_methods_and_no_others() -> None:
    assert sorted(name for name in vars(Agent) if not name.startswith("_")) == sorted(AGENT)


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_the_public_names_of_a_module_are_there_and_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in PUBLIC[module] if not hasattr(loaded, name)]
    assert missing == []
    things = [getattr(loaded, name) for name in PUBLIC[module]]
    undocumented = [thing.__name__ for thing in things if callable(thing) and not thing.__doc__]
    assert undocumented == []
