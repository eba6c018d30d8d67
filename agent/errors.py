"""The tree of errors. Every message says what was found, what was expected and what to do.

RatchetError
+-- SettingsError      faults in ratchet.toml or the environment, all of them
+-- TaskError          a task, suite or tickets file that cannot be read
+-- RecordError        a record on disk or in the store that cannot be read back
+-- StoreError         the store cannot be opened or written
+-- FeedbackError      feedback that does not fit its run
+-- ModelError         weights or runtime
|   +-- WeightsError   missing, broken, short or unexpected weight files
|   +-- PromptError    a prompt that cannot be rendered, or is longer than the model reads
|   +-- GrammarError   a tool schema that cannot be made into a grammar, or a grammar with no way out
|   +-- BusyError      too many waiting requests
+-- AdapterError       an adapter folder or a forbidden transition of the registry
+-- ToolsError         a user's tool file that cannot be loaded
+-- MemoryIndexError   documents or their index
+-- TuningError        the pipeline stops
    +-- DatasetError   no target tokens, nothing to learn from, a broken dataset folder
    +-- NotBetterError the training did not lower the held-out loss
    +-- LivenessError  a stage did nothing: zero gradient, no effect, wrong hash served
"""

from __future__ import annotations

from collections.abc import Sequence


class RatchetError(Exception):
    """Any failure that this project explains. Its text can be shown to a user."""


class SettingsError(RatchetError):
    """The settings have faults; `faults` lists all of them."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__("\n".join([f"{source}: {len(self.faults)} fault(s)", *(f"  - {fault}" for fault in faults)]))


class TaskError(RatchetError):
    """A task, suite or tickets file cannot be read."""


class RecordError(RatchetError):
    """A record cannot be read back."""


class StoreError(RatchetError):
    """The store cannot be opened or written."""


class FeedbackError(RatchetError):
    """Feedback does not fit the run that it names."""


class ModelError(RatchetError):
    """The model cannot be loaded or cannot continue."""


class WeightsError(ModelError):
    """Weight files are missing, broken, short or not the expected ones."""


class PromptError(ModelError):
    """A prompt cannot be rendered, or is longer than the model reads."""


class GrammarError(ModelError):
    """A tool's schema cannot be made into a grammar, or the grammar leaves no way out."""


class BusyError(ModelError):
    """Too many requests wait; try again later."""


class AdapterError(RatchetError):
    """An adapter folder is incomplete or unsafe, or the adapter's state does not allow the transition."""


class ToolsError(RatchetError):
    """A user's tool file cannot be loaded."""


class MemoryIndexError(RatchetError):
    """Documents cannot be read, or their index cannot be opened."""


class TuningError(RatchetError):
    """The tuning pipeline stops before its end."""


class DatasetError(TuningError):
    """There is nothing to train on, or a dataset folder is broken."""


class NotBetterError(TuningError):
    """No epoch of the training lowered the held-out loss."""


class LivenessError(TuningError):
    """A stage ran without effect: no target, no gradient, no change of output, or not the adapter that was trained."""
