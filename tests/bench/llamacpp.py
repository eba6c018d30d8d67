"""The llama.cpp side of a benchmark: our base with an adapter merged in as a GGUF, and a stepper that drives it.

llama.cpp comes through the wheel `xllamacpp`, whose folder must be on the path; its server lives in this process and is
called without HTTP. It is given the very ids that our engine would be given and held to the same grammar of a step,
for it has llguidance inside; only what a grammar leaves no choice about it says token by token.
Its threads spin while they wait, which on a machine that is shared costs several times the time; then set
OMP_WAIT_POLICY=passive for the process. Not promised: that a step can be cancelled half-way, or is told piece by piece.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agent.llm.prompt.render import Frame, Renderer, messages
from agent.llm.prompt.step_grammar import parse_step, step_grammar
from agent.llm.step_model import Proposal
from agent.records.run import Provenance, Trajectory, Usage

if TYPE_CHECKING:
    import numpy

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Linear layers of a llama as transformers and as GGUF call them."""

Guessing = Literal["none", "simple", "map_k", "map_k4v", "mod", "cache"]
"""llama.cpp's ways to look up what probably follows in what was said before."""


@dataclass(frozen=True)
class Settings:
    """How llama.cpp is run."""

    threads: int = 2
    slots: int = 1
    """Runs at once; each has keys and values of its own."""
    context: int = 8192
    """Tokens that a slot holds."""
    batch: int = 512
    """Tokens of one pass over a prompt."""
    flash_attention: bool = True
    guessing: Guessing = "none"
    guess_behind: int = 12
    """Tokens that must have been said before for the ones behind them to be guessed."""
    guess_tokens: int = 48
    """Tokens guessed at once."""
    grammar: bool = True
    """Hold steps to the grammar; without it they are said freely, until the end of the turn."""


@dataclass
class Work:
    """What llama.cpp says that it did, summed up."""

    steps: int = 0
    prompt: int = 0
    """Tokens in front of the steps, cached or not."""
    evaluated: int = 0
    """Of these, those that took a pass."""
    evaluating: float = 0.0
    """Seconds."""
    said: int = 0
    saying: float = 0.0
    """Seconds."""
    guessed: int = 0
    """Of the tokens said, those that had been guessed."""


@dataclass
class LlamaCppStepper:
    """llama.cpp as what proposes steps: greedy, each prompt's known beginning kept from the step before."""

    gguf: Path
    renderer: Renderer
    settings: Settings = field(default_factory=Settings)
    base: str = "llama.cpp"
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        self._server = _start(self.gguf, self.settings)
        self._adding = threading.Lock()

    def provenance(self) -> Provenance:
        return Provenance(base=self.base)

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
        """The next step of a run. Raises ValueError at a temperature above 0, RuntimeError where llama.cpp fails."""
        if temperature > 0:
            raise ValueError(
                f"temperature {temperature} was asked for; this side of the benchmark is greedy, so ask for 0"
            )
        if cancelled.is_set():
            return Proposal(None, error="cancelled", finish_reason="cancelled")
        started = time.perf_counter()
        ids = self.renderer.prompt(messages(trajectory, frame))
        request = self._request(ids, max_tokens)
        if self.settings.grammar:
            request["grammar"] = "%llguidance {}\n" + step_grammar(frame.shape(trajectory.task, trajectory.steps))
        reply = self._server.handle_completions(request)
        if "choices" not in reply:
            raise RuntimeError(f"llama.cpp did not answer: {reply}")
        made = reply["__verbose"]
        usage = self._counted(len(ids), made["timings"])
        said = self._ended(made)
        text = self.renderer.decode(said)
        seconds = time.perf_counter() - started
        if on_text is not None and text:
            on_text(text)
        if made["stop_type"] == "limit":
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

    def _request(self, ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
        return {
            "prompt": list(ids),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "cache_prompt": True,
            "return_tokens": True,
            # The ids that were said, and how they ended, are told in this mode alone.
            "verbose": True,
        }

    def _counted(self, prompt: int, timings: Mapping[str, Any]) -> Usage:
        evaluated, said = int(timings["prompt_n"]), int(timings["predicted_n"])
        guessed = int(timings.get("draft_n_accepted", 0))
        with self._adding:
            self.work.steps += 1
            self.work.prompt += prompt
            self.work.evaluated += evaluated
            self.work.evaluating += timings["prompt_ms"] / 1000
            self.work.said += said
            self.work.saying += timings["predicted_ms"] / 1000
            self.work.guessed += guessed
        return Usage(prompt=prompt, cached=prompt - evaluated, sampled=said, guessed=guessed)

    def _ended(self, made: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids said. A turn that came to its end has in them the end that our prompts know.

        llama.cpp's grammar ends on the text's end of this vocabulary, not on the turn's.
        """
        said: tuple[int, ...] = tuple(made["tokens"])
        if made["stop_type"] == "limit":
            return said
        return (*(said[:-1] if made["stop_type"] == "eos" else said), self.renderer.end_of_turn)


def write_gguf(source: Path, adapter: Path | None, target: Path, *, kind: str | None = None) -> None:
    """A GGUF of the same base with a plain LoRA of PEFT merged into its weights.

    The tensors that the adapter touches are de-quantized, changed and quantized again, to the type they had or to
    `kind`, such as "Q8_0"; all else, metadata too, is as it was. In four bits most of a small LoRA is lost: it changes
    weights by less than half a step. Raises ValueError where a tensor finds no place.
    """
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for name, known in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        element = known.types[-1] if len(known.types) > 1 else None
        writer.add_key_value(name, known.contents(), known.types[0], element)
    changes = {} if adapter is None else _changes(adapter)
    heads = {
        "attn_q": int(reader.fields[f"{architecture}.attention.head_count"].contents()),
        "attn_k": int(reader.fields[f"{architecture}.attention.head_count_kv"].contents()),
    }
    for tensor in reader.tensors:
        change = changes.pop(tensor.name, None)
        made, data = tensor.tensor_type, tensor.data
        if change is not None:
            count = heads.get(tensor.name.split(".")[2])
            plain = quants.dequantize(data, made) + (change if count is None else _permuted(change, count))
            made = made if kind is None else GGMLQuantizationType[kind]
            data = quants.quantize(plain, made)
        writer.add_tensor(tensor.name, data, raw_dtype=made)
    if changes:
        raise ValueError(f"{source} has no tensor {min(changes)!r}, which the adapter in {adapter} changes")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _start(gguf: Path, settings: Settings) -> Any:
    """llama.cpp's server, in this process."""
    import xllamacpp  # type: ignore[import-not-found]

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_parallel = settings.slots
    params.n_ctx = settings.context * settings.slots
    params.n_batch = params.n_ubatch = settings.batch
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    kinds = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if settings.flash_attention else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.ui = False
    params.verbosity = 0
    if settings.guessing != "none":
        ways = xllamacpp.common_speculative_type
        params.speculative.types = [getattr(ways, f"COMMON_SPECULATIVE_TYPE_NGRAM_{settings.guessing.upper()}")]
        if settings.guessing == "mod":
            way = params.speculative.ngram_mod
            way.n_match, way.n_min, way.n_max = settings.guess_behind, 1, settings.guess_tokens
        elif settings.guessing != "cache":
            way = getattr(params.speculative, f"ngram_{settings.guessing}")
            way.size_n, way.size_m = settings.guess_behind, settings.guess_tokens
    return xllamacpp.Server(params)


def _changes(adapter: Path) -> dict[str, numpy.ndarray[Any, Any]]:
    """What a LoRA adds to the weights, by the names of GGUF, in float32."""
    from safetensors.numpy import load_file

    config: Mapping[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if config["peft_type"] != "LORA" or config.get("use_dora") or config.get("alpha_pattern"):
        raise ValueError(f"{adapter} is no plain LoRA; only one can be merged into a GGUF")
    tensors = load_file(adapter / "adapter_model.safetensors")
    changes = {}
    for name, first in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        second = tensors[name.replace(".lora_A.", ".lora_B.")]
        found = re.fullmatch(r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.lora_A\.weight", name)
        if found is None or found[2] not in _NAMES:
            raise ValueError(f"{adapter} changes {name!r}, which has no place in a llama's GGUF")
        rank = first.shape[0]
        scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        changes[f"blk.{found[1]}.{_NAMES[found[2]]}.weight"] = scaling * (second @ first)
    return changes


def _permuted(weights: numpy.ndarray[Any, Any], heads: int) -> numpy.ndarray[Any, Any]:
    """Rows in the order GGUF has them: the halves that a rotation pairs lie beside each other, not behind."""
    rows = weights.shape[0]
    return weights.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(rows, -1)
