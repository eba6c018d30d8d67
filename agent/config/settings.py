"""Settings: what `ratchet.toml` and a named few environment variables may say, and where the home is.

Every key has a type, a range, a default and a note; a file is checked whole and every fault is reported
at once. This is the only module that reads the environment, and of it only the names in `ENVIRONMENT`.
Whether the model, tools or suite a setting names exist is not checked here; whoever opens them says so.
A file that another user of the machine could have written is not read (`tools.trust`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from tools.trust import TRUST

ENVIRONMENT = ("RATCHET_HOME", "RATCHET_THREADS", TRUST)
"""The environment variables this project reads, all of them. RATCHET_TRUST names folders, parted as in PATH, whose
settings and tools are run although another user could have written them."""

T = TypeVar("T")


def _key(default: T, expected: str, fits: Callable[[T], bool]) -> T:
    """A field whose value must fit; `expected` says in words what fits."""
    return field(default=default, metadata={"expected": expected, "fits": fits})


def _choice(default: str, *choices: str) -> str:
    return _key(default, "one of " + ", ".join(f'"{choice}"' for choice in choices), lambda value: value in choices)


def _whole(default: int, low: int, high: int | None = None) -> int:
    expected = f"{low} or more" if high is None else f"{low} to {high}"
    return _key(default, expected, lambda value: value >= low and (high is None or value <= high))


def _real(default: float, low: float, high: float = math.inf) -> float:
    expected = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
    return _key(default, expected, lambda value: low <= value <= high)


def _share(default: float) -> float:
    return _key(default, "0 or more and below 1", lambda value: 0 <= value < 1)


def _above_zero(default: float) -> float:
    return _key(default, "a number above 0", lambda value: value > 0)


def _text(default: str) -> str:
    return _key(default, "a text that is not empty", lambda value: bool(value.strip()))


def _names(default: tuple[str, ...], *, empty: bool = True) -> tuple[str, ...]:
    expected = "texts that are not empty" + ("" if empty else ", at least one")
    return _key(default, expected, lambda value: (empty or bool(value)) and all(item.strip() for item in value))


def _named_paths() -> Mapping[str, str]:
    """A field of tool names, each with a text that is not empty; none by default."""

    def fits(value: Mapping[str, str]) -> bool:
        return all(_TOOL_NAME.fullmatch(name) and path.strip() for name, path in value.items())

    expected = "names of letters, digits and _, each with a text that is not empty"
    return field(default_factory=dict, metadata={"expected": expected, "fits": fits})


_TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def _is_device(value: str) -> bool:
    return value in ("auto", "cpu", "cuda", "mps") or (value.startswith("cuda:") and value[5:].isdecimal())


@dataclass(frozen=True)
class ModelSettings:
    """The base model, the sentence encoder, and how they run."""

    base: str = _text("smollm2-135m-instruct")
    """The language model: a name `ratchet models` lists, a local folder or a hub id, tried in that order."""
    encoder: str = _text("all-minilm-l6-v2")
    """The sentence encoder the knowledge search uses; named like `base`."""
    device: str = _key("auto", 'one of "auto", "cpu", "cuda", "cuda:N", "mps"', _is_device)
    """Where the model runs: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:N" or "mps"."""
    dtype: str = _choice("auto", "auto", "float32", "mixed", "bfloat16", "float16")
    """Number format of the weights; "mixed" multiplies in bfloat16 and keeps all else in float32, and "auto" takes
    bfloat16 on an NVIDIA GPU, elsewhere whichever of float32 and mixed is faster on this machine."""
    threads: int = _whole(0, 0, 1024)
    """CPU threads; 0 means all cores. RATCHET_THREADS in the environment goes before this."""
    max_sessions: int = _whole(16, 1, 1024)
    """Steps decoded together, at most."""
    cache_tokens: int = _whole(32768, 0)
    """Tokens whose keys and values are kept for later prompts, over all sessions."""


@dataclass(frozen=True)
class AgentSettings:
    """What the agent is told, and what one run may use up."""

    instructions: str = _text("You are a helpful agent. Use the tools to do the task, then answer.")
    """The first words of the system prompt; the tools are listed below them."""
    plan: bool = True
    """Have the model write a short plan on the first step and after a step that failed."""
    thought: bool = True
    """Have the model write a thought before each call."""
    quoted_answers: bool = False
    """Let an answer be nothing but sentences that tools said, word for word, and cite the passages they stand in. So
    no fact is made up, and nothing can be answered before a tool was asked; for tools that speak in sentences."""
    grounded: str = _choice("off", "off", "mark", "withhold")
    """Check each sentence of an answer against what the run was shown, and "mark" those that nothing supports or
    "withhold" them; with nothing left, the reply says that the documents do not say and offers to hand over."""
    max_steps: int = _whole(8, 1)
    """Steps a run may take before it ends as out_of_steps."""
    max_tokens: int = _whole(8000, 1)
    """Tokens a run may use before it ends as out_of_tokens."""
    max_seconds: float = _above_zero(300.0)
    """Seconds a run may take before it ends as out_of_time."""
    temperature: float = _real(0.0, 0.0, 5.0)
    """0 takes the likeliest token each time; higher values vary more."""
    seed: int = _whole(0, 0, 2**63 - 1)
    """Seed of the sampling; it matters when temperature is above 0."""


@dataclass(frozen=True)
class ToolSettings:
    """The user's own tools."""

    files: tuple[str, ...] = _names(())
    """Python files (relative to the project's folder) or dotted module names; each has `load_tools`."""
    enabled: tuple[str, ...] = _names(())
    """Names of the tools the agent may use; empty means all."""
    tasks: Mapping[str, str] = _named_paths()
    """Trained classic tasks the agent may ask: the tool's name, and the task's folder (relative to the project's) or
    its name in the home, as in { classify_intent = "intents" }."""


@dataclass(frozen=True)
class MemorySettings:
    """The knowledge search."""

    passages: int = _whole(3, 1, 50)
    """Passages one search shows the model."""
    min_score: float = _real(-1.0, -1.0, 1.0)
    """Cosine similarity below which a passage is not shown, -1 to 1; -1 shows the best whatever they score."""
    copied_queries: bool = False
    """Let the model search only for words it was shown: a small one else searches for what nobody asked."""
    task_in_queries: bool = True
    """Search for the words of a short task together with what the model asks."""
    chunk_tokens: int = _whole(160, 16, 4096)
    """Length of a passage in tokens of the encoder, at most."""
    reranker: str = ""
    """A cross-encoder, by folder or hub id, that orders the best passages of a search anew; empty for none."""
    neighbours: int = _whole(0, 0, 5)
    """Pieces before and behind a passage, in its section, that are shown with it."""
    tenant: str = ""
    """Whose documents are searched; those of other tenants in the same home are never seen."""
    server: str = ""
    """Address of a Chroma server (http://) or PostgreSQL database (postgresql://) that holds the vectors in place of
    the embedded index; empty for none."""
    recall: int = _whole(3, 0, 20)
    """Solved tasks like the new one whose beginnings the model is shown, out of the log; 0 shows none."""
    recall_as: str = _choice("text", "text", "odds", "both")
    """How they count: as text in the prompt, as odds beside the model's own where it chooses its first call,
    or both. With odds, calls that chose otherwise from what a tool lists are other beginnings."""
    recall_tokens: int = _whole(8192, 16, 1_000_000)
    """Tokens of the prompt that these may take together, at most; the likeliest are kept."""
    folders: tuple[str, ...] = _names(())
    """Folders of documents, relative to the project's folder."""


TUNING_METHODS = ("lora", "rslora", "dora", "lora+", "qlora", "prompt", "prefix", "full")


@dataclass(frozen=True)
class TuningSettings:
    """How an adapter is trained from corrections."""

    method: str = _choice("lora", *TUNING_METHODS)
    """What is trained; see docs/tuning.md."""
    r: int = _whole(16, 1, 1024)
    """Rank of the adapter."""
    alpha: int = _whole(32, 1, 8192)
    """Scale of the adapter; its output is multiplied by alpha / r."""
    dropout: float = _share(0.0)
    """Share of the adapter's inputs dropped at random while it trains."""
    targets: tuple[str, ...] = _names(("all-linear",), empty=False)
    """Modules that get an adapter, by name; "all-linear" means every linear layer but the output."""
    top_layers: int = _whole(0, 0)
    """Only this many layers, from the top, are tuned; 0 tunes all."""
    virtual_tokens: int = _whole(20, 1, 1024)
    """With methods "prompt" and "prefix": how many are put before every sequence."""
    cache_gigabytes: float = _real(4.0, 0.0)
    """With `top_layers`: disk for what the layers below make of the examples; 0 computes it in every epoch."""
    rate_ratio: float = _above_zero(16.0)
    """With method "lora+": the rate of an adapter's second matrix over that of its first."""
    start: str = _choice("base", "base", "active")
    """What a tuning starts from: "base", or "active" to go on from the adapter that is served."""
    replay: float = _real(1.0, 0.0, 1.0)
    """With start "active": the share of the tasks learnt before that is learnt again, chosen to cover them all."""
    anchor: float = _real(0.0, 0.0)
    """With start "active": how strongly the adapter is held to where it started (half the squared distance)."""
    anchor_kl: float = _real(0.0, 0.0)
    """With start "active": how strongly it is held to what that adapter says at the targets (KL divergence)."""
    label_smoothing: float = _share(0.0)
    """Share of a target's probability that is spread over all tokens."""
    neftune: float = _real(0.0, 0.0)
    """Strength of the noise on the embeddings (NEFTune's alpha); 5 is usual, 0 is none."""
    adversarial: str = _choice("none", "none", "fgm", "pgd", "freelb")
    """Train against the worst small change of the embeddings; costs 2, 4 and 3 times the passes."""
    adversarial_size: float = _above_zero(0.05)
    """How large that change may be, as a share of each embedding's length."""
    precision: str = _choice("auto", "auto", "float32", "mixed")
    """Of matrix products while training; "auto" takes whichever is faster on this machine."""
    learning_rate: float = _real(0.0, 0.0)
    """Highest learning rate, reached after the warm-up; 0 takes the method's own, 1e-3 for LoRA."""
    epochs: int = _whole(4, 1, 1000)
    """Passes over the data, when there is enough of it for `min_steps`."""
    min_steps: int = _whole(48, 1)
    """Optimizer steps of a tuning, at least; with little data they take more epochs than `epochs`."""
    batch_targets: int = _whole(150, 1)
    """Target tokens (what the model is to say) that one optimizer step gathers, at least."""
    max_tokens_per_pack: int = _whole(0, 0)
    """Tokens of one packed sequence, prompts included, at most; 0 takes as many as fit into the free memory."""
    weighting: str = _choice("token", "token", "example", "trajectory")
    """What counts the same in the loss: every target token, every example, or every trajectory."""
    contexts: int = _whole(0, 0, 20)
    """For each answer that cites passages, how many more times it is learnt among other passages that the search finds;
    0 learns it as it was given alone."""
    abstain: float = _real(0.3, 0.0, 1.0)
    """Share of these in which the passages that were cited are missing, so that handing over is learnt."""
    validation_share: float = _share(0.1)
    """Share of the runs held out to decide when to stop; 0, or too few runs for it, holds out none."""
    patience: int = _whole(2, 0)
    """Epochs without a lower held-out loss before the training stops; 0 never stops early."""
    schedule: str = _choice("cosine", "cosine", "linear", "constant")
    """How the learning rate goes on behind the warm-up; "cosine" and "linear" end at a tenth of it."""
    warmup_share: float = _share(0.05)
    """Share of the optimizer steps in which the learning rate rises."""
    weight_decay: float = _real(0.0, 0.0)
    """Weight decay of AdamW."""
    max_grad_norm: float = _above_zero(1.0)
    """Gradients longer than this are shortened to it."""
    checkpoint_seconds: float = _above_zero(60.0)
    """Time between two checkpoints of a running tuning."""
    seed: int = _whole(0, 0, 2**63 - 1)
    """Seed of initial weights, order and dropout."""


@dataclass(frozen=True)
class GateSettings:
    """When a candidate adapter may be served."""

    resamples: int = _whole(10000, 100)
    """Resamples of the bootstrap."""
    margin: float = _real(0.1, 0.0, 1.0)
    """Share of its tasks that a group may lose on balance, even where the loss is more than chance explains."""
    never_lost: tuple[str, ...] = _names(())
    """Groups of the suite that may not lose a task, chance or not; "refusals" names the tasks to be escalated."""
    min_tasks: int = _whole(20, 1)
    """Tasks the held-out suite must have, at least."""
    suite: str = ""
    """The held-out suite (JSON lines), relative to the project's folder; empty when there is none yet."""


@dataclass(frozen=True)
class PrivacySettings:
    """What is kept out of the log."""

    scrub: bool = True
    """Keep secrets and personal data out of the log, in runs and in feedback on them; tools still get them."""


@dataclass(frozen=True)
class ServeSettings:
    """The HTTP service."""

    host: str = _text("127.0.0.1")
    """Address to listen on. Any but a loopback address needs `key_file`."""
    port: int = _whole(8777, 0, 65535)
    """Port to listen on; 0 takes a free one."""
    key_file: str = ""
    """File that holds the key callers must send, relative to the project's folder; empty asks for none."""


@dataclass(frozen=True)
class Settings:
    """Everything `ratchet.toml` may say, one field a section."""

    model: ModelSettings = ModelSettings()
    agent: AgentSettings = AgentSettings()
    tools: ToolSettings = ToolSettings()
    memory: MemorySettings = MemorySettings()
    tuning: TuningSettings = TuningSettings()
    gate: GateSettings = GateSettings()
    privacy: PrivacySettings = PrivacySettings()
    serve: ServeSettings = ServeSettings()
