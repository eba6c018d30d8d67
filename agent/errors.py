"""The error tree. Every message says what was found, what was expected and what to do.

RatchetError
+-- SettingsError      ratchet.toml or the environment; carries every fault found
+-- TaskError          a task, suite or tickets file that cannot be read
+-- RecordError        a record on disk or in the store that cannot be read back
+-- StoreError         the store cannot be opened or written
+-- FeedbackError      a rating or correction that does not fit its run
+-- ModelError         weights or runtime
|   +-- WeightsError   missing, broken, short or unexpected weight files
|   +-- PromptError    a prompt that cannot be rendered, or is longer than the model reads
|   +-- GrammarError   a tool schema that cannot be made into a grammar, or a grammar with no way out
|   +-- BusyError      more requests wait than may
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
    """Any failure this project explains. Its text is fit to be shown to a user."""


class SettingsError(RatchetError):
    """The settings do not hold. `faults` lists every one that was found, not the first alone."""

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
    """A rating or correction does not fit the run it names."""


class ModelError(RatchetError):
    """The model cannot be loaded or cannot go on."""


class WeightsError(ModelError):
    """Weight files are missing, broken, short or not the expected ones."""


class PromptError(ModelError):
    """A prompt cannot be rendered, or is longer than the model reads."""


class GrammarError(ModelError):
    """A tool's schema cannot be made into a grammar, or the grammar leaves no way out."""


class BusyError(ModelError):
    """As many requests wait as may; the same one can be made again later."""


class AdapterError(RatchetError):
    """An adapter folder is not whole or not safe, or its state does not allow what was asked."""


class ToolsError(RatchetError):
    """A user's tool file cannot be loaded."""


class MemoryIndexError(RatchetError):
    """Documents cannot be read, or their index cannot be opened."""


class TuningError(RatchetError):
    """The tuning pipeline stops."""


class DatasetError(TuningError):
    """There is nothing to learn from, or a dataset folder is broken."""


class NotBetterError(TuningError):
    """The training ran and no epoch of it lowered the held-out loss."""


class LivenessError(TuningError):
    """A stage ran and did nothing: no target, no gradient, no effect, or not the adapter that was trained."""
