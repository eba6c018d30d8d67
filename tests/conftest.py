"""What many tests share: an empty store, and the folder that keeps the converted base model between sessions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agent.llm.chat_model import LocalModel
    from agent.storage.store import Store

REPOSITORY = Path(__file__).parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is where a shell started the tests in the background; the programs under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    from agent.storage.store import Store

    with Store(tmp_path / "ratchet.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Where converted weights are kept: RATCHET_TEST_MODELS, else `.ratchet/models` of this checkout."""
    return Path(os.environ.get("RATCHET_TEST_MODELS") or REPOSITORY / ".ratchet" / "models").resolve()


@pytest.fixture(scope="module")
def local_model(models_folder: Path) -> Iterator[LocalModel]:
    """The real base model, converted if it is not yet; its engine is closed after the module's tests."""
    from agent.llm.chat_model import LocalModel
    from agent.llm.weights.catalog import DEFAULT_MODEL

    model = LocalModel.load(DEFAULT_MODEL, models_folder)
    yield model
    model.close()
