"""The vLLM side of a benchmark: our base with an adapter merged in as a folder, and a stepper that drives it.

vLLM's own packages differ from ours, so its offline engine lives in a process of its own (`vllm_child`). It is given
the very ids that our engine would be given and held to the same grammar of a step, by llguidance.
Not promised: that a step can be cancelled half-way, or is told piece by piece.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.llm.prompt.render import Frame, Renderer, messages
from agent.llm.prompt.step_grammar import parse_step, step_grammar
from agent.llm.step_model import Proposal
from agent.llm.weights.load import ModelFolder
from agent.records.run import Provenance, Trajectory, Usage

CHILD = Path(__file__).with_name("vllm_child.py")


@dataclass(frozen=True)
class Settings:
    """How vLLM is run."""

    dtype: str = "bfloat16"
    eager: bool = False
    """Without torch.compile, which takes a while at the first start and then halves the time of a step."""
    runs: int = 4
    """At once, in a batch."""
    context: int = 8192
    block: int | None = 32
    """Tokens of a block, whole ones of which are kept for prompts that begin alike: a multiple of 32 on a CPU. None is
    vLLM's choice, which keeps less."""
    cache_gib: int = 1
    threads: int = 2
    guess_tokens: int = 0
    """Guessed at once, from what followed the same n-gram before; 0 guesses nothing."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Others, of vLLM's `LLM`."""

    def llm(self, folder: Path) -> dict[str, Any]:
        """The arguments of vLLM's `LLM`."""
        made: dict[str, Any] = {
            "model": str(folder),
            "dtype": self.dtype,
            "enforce_eager": self.eager,
            "enable_prefix_caching": True,
            "max_num_seqs": self.runs,
            "max_model_len": self.context,
            "structured_outputs_config": {"backend": "guidance"},
        }
        if self.block is not None:
            made["block_size"] = self.block
        if self.guess_tokens:
            made["speculative_config"] = {
                "method": "ngram",
                "num_speculative_tokens": self.guess_tokens,
                "prompt_lookup_max": 4,
                "prompt_lookup_min": 2,
            }
        return made | dict(self.options)


class VllmStepper:
    """vLLM as what proposes steps: greedy, with prefix caching."""

    def __init__(
        self,
        folder: Path,
        renderer: Renderer,
        *,
        python: Path | None = None,
        packages: Path | None = None,
        settings: Settings | None = None,
        base: str = "vllm",
    ) -> None:
        """`python` has vLLM, or our own python has it with the folder `packages` put first on its path.

        Returns when vLLM is ready. Raises RuntimeError when it does not start; why is on the standard error.
        """
        self._renderer = renderer
        self._base = base
        settings = settings or Settings()
        self._child = subprocess.Popen(
            [str(python or sys.executable), str(CHILD), json.dumps(settings.llm(folder))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=_environment(settings, packages),
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests, self._replies = self._child.stdin, self._child.stdout
        if not self._replies.readline():
            raise RuntimeError(f"vLLM ended with {self._child.wait()} before it was ready; its error is above")
        self._lock = threading.Lock()
        self._count = 0
        self._waiting: dict[str, Future[dict[str, Any]]] = {}
        threading.Thread(target=self._hear, daemon=True).start()

    def provenance(self) -> Provenance:
        return Provenance(base=self._base)

    def close(self) -> None:
        """End vLLM's process."""
        self._requests.close()
        try:
            self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()

    def propose(
        self,
        trajectory: Trajectory,
        frame: Frame,
        *,
        temperature: float,
        seed: int,
        max_tokens: int,
        max_seconds: float,
        cancelled: threading.Event,
        on_text: Callable[[str], None] | None = None,
    ) -> Proposal:
        """The next step of a run. Raises ValueError at a temperature above 0, RuntimeError where vLLM fails."""
        if temperature > 0:
            raise ValueError(f"temperature {temperature} was asked for; this side is greedy, so ask for 0")
        if cancelled.is_set():
            return Proposal(None, error="cancelled", finish_reason="cancelled")
        started = time.perf_counter()
        ids = self._renderer.prompt(messages(trajectory, frame))
        grammar = step_grammar(frame.shape(trajectory.task, trajectory.steps))
        made = self._ask({"ids": ids, "max_tokens": max_tokens, "grammar": grammar})
        said: tuple[int, ...] = tuple(made["ids"])
        usage = Usage(prompt=len(ids), cached=made["cached"], sampled=len(said))
        if made["end"] == "stop" and said[-1:] != (self._renderer.end_of_turn,):
            said += (self._renderer.end_of_turn,)
        text = self._renderer.decode(said)
        seconds = time.perf_counter() - started
        if on_text is not None and text:
            on_text(text)
        if made["end"] == "length":
            why = "cut off by the token budget"
            return Proposal(
                None, text=text, error=why, finish_reason="length", token_ids=said, usage=usage, seconds=seconds
            )
        try:
            step = parse_step(text)
        except ValueError as fault:
            why = f"This is not a step: {fault}."
            return Proposal(None, text=text, error=why, token_ids=said, usage=usage, seconds=seconds)
        return Proposal(step.call, step.thought, step.plan, token_ids=said, usage=usage, seconds=seconds)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        reply: Future[dict[str, Any]] = Future()
        with self._lock:
            self._count += 1
            name = str(self._count)
            self._waiting[name] = reply
            self._requests.write(json.dumps({"id": name, **request}) + "\n")
            self._requests.flush()
        made = reply.result()
        if "error" in made:
            raise RuntimeError(f"vLLM refused a request: {made['error']}")
        return made

    def _hear(self) -> None:
        for line in self._replies:
            made = json.loads(line)
            with self._lock:
                waiting = self._waiting.pop(made["id"])
            waiting.set_result(made)
        with self._lock:
            for waiting in self._waiting.values():
                waiting.set_result({"error": "its process ended"})


def merge(base: ModelFolder, adapter: Path, target: Path) -> None:
    """A folder of the base's weights with a LoRA of PEFT merged in, in float32, for vLLM to load."""
    from peft import PeftModel

    from agent.llm.weights import load as weights

    model = weights.load_model(base, device="cpu", dtype="float32")
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(str(target))
    weights.load_tokenizer(base).save_pretrained(str(target))


def _environment(settings: Settings, packages: Path | None) -> dict[str, str]:
    made = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cache_gib),
        # Else the engine would be yet another process, and every step a message to it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(settings.threads),
    }
    if packages is not None:
        made["PYTHONPATH"] = str(packages)
    return made
