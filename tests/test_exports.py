"""The public names: what other code may hold on to. A name that goes or moves is found here first."""

from __future__ import annotations

import importlib

import pytest

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
    "tuner.tasks.fit.zero_shot": ("measure", "prompted"),
    "tuner.tasks.data.records": (
        *("Answer", "Asked", "Classified", "Conversed", "Related", "Similar", "Span", "Tagged", "Turn", "Written"),
    ),
    "tuner.tasks.feedback.agent_tools": ("TaskTools",),
    "tuner.api": ("open_runtime",),
    "agent.registry.task_models": ("find_task", "served_folder", "versions"),
    "tools.context": ("Passage", "Retriever", "ToolContext"),
}


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_the_public_names_of_a_module_are_there_and_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in PUBLIC[module] if not hasattr(loaded, name)]
    assert missing == []
    things = [getattr(loaded, name) for name in PUBLIC[module]]
    undocumented = [thing.__name__ for thing in things if callable(thing) and not thing.__doc__]
    assert undocumented == []
