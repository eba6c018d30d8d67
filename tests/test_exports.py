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
    "agent.trajectory": ("Outcome", "OutputCorrection", "Step", "Task", "ToolCall", "Trajectory"),
    "agent.database": ("open_engine", "prepare_schema", "reading", "writing"),
    "agent.sealing": (
        "Manifest",
        "add_documents",
        "hash_tensors",
        "seal",
        "tensors_hash",
        "verify",
    ),
    "agent.adapters": ("Adapter", "Change", "Registry", "Serving", "State", "TRANSITIONS"),
    "agent.settings": ("Home", "Project", "Settings", "find_project", "load_settings", "settings_template"),
    "agent.llm.catalog": ("CATALOG", "DEFAULT_ENCODER", "DEFAULT_MODEL", "KnownWeights"),
    "agent.llm.weights": (
        "ModelEntry",
        "ModelFolder",
        "list_models",
        "load_model",
        "load_tokenizer",
        "resolve_encoder",
        "resolve_model",
    ),
    "agent.doctor": ("Finding", "diagnose"),
    "tuner.tasks.api": ("load", "train"),
    "tuner.tasks.language.prompted": ("measure", "prompted"),
    "tuner.tasks.data.records": (
        *("Answer", "Asked", "Classified", "Conversed", "Related", "Similar", "Span", "Tagged", "Turn", "Written"),
    ),
    "tuner.tasks.tools": ("TaskTools",),
    "tuner.opening": ("open_runtime",),
    "agent.task_folders": ("find_task", "served_folder", "versions"),
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
