"""The training methods of `[tuning] method`. Apart from the settings, so that `ratchet --help` imports no pydantic."""

from __future__ import annotations

from typing import Literal, get_args

TuningMethod = Literal["lora", "rslora", "dora", "lora+", "qlora", "prompt", "prefix", "full"]
TUNING_METHODS: tuple[TuningMethod, ...] = get_args(TuningMethod)
