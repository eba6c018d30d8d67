"""What many tests share: the folder that keeps the converted base model from one session to the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Where converted weights are kept: RATCHET_TEST_MODELS, else `.ratchet/models` of this checkout."""
    return Path(os.environ.get("RATCHET_TEST_MODELS") or REPOSITORY / ".ratchet" / "models").resolve()
