"""Settings: the sections and keys of `ratchet.toml`, each with its type, range, default and description.

Sections are frozen and check their values when they are made. Whether the model, tools or suite that a setting
names exist is not checked here; whoever opens them reports it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from agent.config.methods import TuningMethod
from agent.util.hosts import is_loopback

MAX_SEED = 2**63 - 1

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""No conversions, no unknown keys, no infinities."""


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not empty")
    return text


def _check_tool_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
        raise ValueError('names of letters, digits and _, such as { classify_intent = "intents" }')
    return name


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name, re.ASCII):
        raise ValueError('one of "auto", "cpu", "cuda", "cuda:N", "mps"')
    return name


Text = Annotated[str, AfterValidator(_check_text)]
ToolName = Annotated[str, AfterValidator(_check_tool_name)]
Device = Annotated[str, AfterValidator(_check_device)]
TextList = Annotated[tuple[Text, ...], Field(strict=False)]
"""A list is accepted too."""


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """The base model, the sentence encoder, and how they run."""

    base: Text = Field(
        default="smollm2-135m-instruct",
        description=(
            "The language model: a name from `ratchet models`, a local folder or a hub id, looked up in that order."
        ),
    )
    encoder: Text = Field(
        default="all-minilm-l6-v2",
        description="The sentence encoder of the document search, given like `base`.",
    )
    device: Device = Field(
        default="auto",
        description='Where the model runs: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:N" or "mps".',
    )
    dtype: Literal["auto", "float32", "mixed", "bfloat16", "float16"] = Field(
        default="auto",
        description=(
            'Number format of the weights. "mixed" multiplies matrices in bfloat16 and keeps everything else in '
            'float32; "auto" takes bfloat16 on an NVIDIA GPU, elsewhere the faster of float32 and mixed on this '
            "machine."
        ),
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads; 0 means all cores. The environment variable RATCHET_THREADS overrides it.",
    )
    max_sessions: int = Field(default=16, ge=1, le=1024, description="Most steps decoded in one batch.")
    cache_tokens: int = Field(
        default=32768,
        ge=0,
        description="Most tokens, over all sessions, whose keys and values are cached for later prompts.",
    )


@dataclass(frozen=True, config=STRICT)
class AgentSettings:
    """The system prompt, and the limits of one run."""

    instructions: Text = Field(
        default="You are a helpful agent. Use the tools to do the task, then answer.",
        description="The first words of the system prompt; the list of tools follows.",
    )
    plan: bool = Field(
        default=True,
        description="Let the model write a short plan in the first step and after a step that failed.",
    )
    thought: bool = Field(default=True, description="Let the model write a thought before each call.")
    quoted_answers: bool = Field(
        default=False,
        description=(
            "Build answers only from sentences that tools returned, word for word, and cite the passages that contain "
            "them. This rules out invented facts; use it with tools that return sentences."
        ),
    )
    grounded: Literal["off", "mark", "withhold"] = Field(
        default="off",
        description=(
            'Check each sentence of an answer against the observations of the run. "mark" marks the unsupported '
            'sentences, "withhold" removes them; when none is left, the reply says that the documents have no answer '
            "and offers to escalate."
        ),
    )
    max_steps: int = Field(default=8, ge=1, description="Most steps of a run; after them its outcome is out_of_steps.")
    max_tokens: int = Field(
        default=8000, ge=1, description="Most tokens of a run; after them its outcome is out_of_tokens."
    )
    max_seconds: float = Field(
        default=300.0, gt=0, description="Most seconds of a run; after them its outcome is out_of_time."
    )
    temperature: float = Field(
        default=0.0,
        ge=0.0,
        le=5.0,
        description="Sampling temperature; 0 always takes the likeliest token.",
    )
    seed: int = Field(
        default=0, ge=0, le=MAX_SEED, description="Seed of the sampling, used when temperature is above 0."
    )


@dataclass(frozen=True, config=STRICT)
class ToolSettings:
    """The user's own tools."""

    files: TextList = Field(
        default=(),
        description="Python files (relative to the project folder) or dotted module names that define `load_tools`.",
    )
    enabled: TextList = Field(default=(), description="Names of the tools the agent may use; an empty list means all.")
    tasks: Mapping[ToolName, Text] = Field(
        default_factory=dict,
        description=(
            "Trained classic tasks that the agent may call as tools: the name of the tool, and the folder of the task "
            '(relative to the project folder) or its name in the home, such as { classify_intent = "intents" }.'
        ),
    )


@dataclass(frozen=True, config=STRICT)
class MemorySettings:
    """The document search, and the recall of solved tasks."""

    passages: int = Field(default=3, ge=1, le=50, description="Passages that a search returns to the model.")
    min_score: float = Field(
        default=-1.0,
        ge=-1.0,
        le=1.0,
        description=(
            "Lowest cosine similarity of a passage that is returned, -1 to 1; -1 returns the best passages whatever "
            "their score."
        ),
    )
    copied_queries: bool = Field(
        default=False,
        description=(
            "Let the model search only for words of its context; small models otherwise search for unrelated words."
        ),
    )
    task_in_queries: bool = Field(default=True, description="Add the words of a short task to the model's query.")
    chunk_tokens: int = Field(default=160, ge=16, le=4096, description="Most tokens (of the encoder) in a passage.")
    reranker: str = Field(
        default="",
        description="A cross-encoder, given as a folder or hub id, that reranks the best passages; empty for none.",
    )
    neighbours: int = Field(
        default=0,
        ge=0,
        le=5,
        description="Passages before and after a hit, in the same section, that are returned with it.",
    )
    tenant: str = Field(
        default="",
        description="Whose documents are searched; documents of other tenants in the same home are never read.",
    )
    server: str = Field(
        default="",
        description=(
            "Address of a Chroma server (http://) or PostgreSQL database (postgresql://) that stores the vectors "
            "instead of the embedded index; empty for none."
        ),
    )
    recall: int = Field(
        default=3,
        ge=0,
        le=20,
        description="Similar solved tasks from the log whose first calls the model is shown; 0 shows none.",
    )
    recall_as: Literal["text", "odds"] = Field(
        default="text",
        description=(
            'How recalled tasks are used: "text" puts them into the prompt, "odds" weighs the choice of the first '
            "call by them."
        ),
    )
    recall_tokens: int = Field(
        default=8192,
        ge=1,
        le=1000000,
        description="Most prompt tokens of all recalled tasks together; the most similar ones are kept.",
    )
    folders: TextList = Field(default=(), description="Folders of documents, relative to the project folder.")


@dataclass(frozen=True, config=STRICT)
class TuningSettings:
    """How an adapter is trained from corrections."""

    method: TuningMethod = Field(default="lora", description="Training method; see docs/reference/tuning.md.")
    r: int = Field(default=16, ge=1, le=1024, description="Rank of the adapter.")
    alpha: int = Field(
        default=32, ge=1, le=8192, description="Scale of the adapter; its output is multiplied by alpha / r."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's inputs.")
    targets: TextList = Field(
        default=("all-linear",),
        min_length=1,
        description=(
            'Modules that get an adapter, by name; "all-linear" means every linear layer except the output layer.'
        ),
    )
    top_layers: int = Field(
        default=0, ge=0, description="Train only this many layers, counted from the top; 0 trains all."
    )
    virtual_tokens: int = Field(
        default=20,
        ge=1,
        le=1024,
        description='For methods "prompt" and "prefix": number of trained virtual tokens in front of every sequence.',
    )
    cache_gigabytes: float = Field(
        default=4.0,
        ge=0.0,
        description=(
            "With `top_layers`: disk space for cached activations of the lower layers; 0 computes them in every epoch."
        ),
    )
    rate_ratio: float = Field(
        default=16.0,
        gt=0,
        description='For method "lora+": learning rate of matrix B divided by that of matrix A.',
    )
    start: Literal["base", "active"] = Field(
        default="base",
        description='Where a tuning starts: at the "base" model, or at the "active" adapter.',
    )
    replay: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description=(
            'With start "active": share of the earlier tasks that is trained again, selected to cover all of them.'
        ),
    )
    anchor: float = Field(
        default=0.0,
        ge=0.0,
        description=(
            'With start "active": weight of the penalty for moving away from the starting weights (half the squared '
            "distance)."
        ),
    )
    anchor_kl: float = Field(
        default=0.0,
        ge=0.0,
        description=(
            'With start "active": weight of the penalty for moving away from the starting adapter\'s predictions (KL '
            "divergence)."
        ),
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a target's probability that is spread over all tokens.",
    )
    neftune: float = Field(
        default=0.0,
        ge=0.0,
        description="Strength of the noise on the embeddings (NEFTune's alpha); 5 is usual, 0 adds none.",
    )
    adversarial: Literal["none", "freelb"] = Field(
        default="none",
        description='"freelb" trains on the worst small changes of the embeddings as well (Zhu et al., 2020); a step '
        "takes three passes.",
    )
    adversarial_size: float = Field(
        default=0.05,
        gt=0,
        description="Largest adversarial change, as a share of each embedding's length.",
    )
    precision: Literal["auto", "float32", "mixed"] = Field(
        default="auto",
        description='Precision of matrix products in training; "auto" takes the faster one on this machine.',
    )
    learning_rate: float = Field(
        default=0.0,
        ge=0.0,
        description=(
            "Highest learning rate, reached after the warm-up; 0 takes the method's default, which is 1e-3 for LoRA."
        ),
    )
    epochs: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="Passes over the data; more when the data is too small for `min_steps`.",
    )
    min_steps: int = Field(default=48, ge=1, description="Fewest optimizer steps of a tuning.")
    batch_targets: int = Field(default=150, ge=1, description="Fewest target tokens in one optimizer step.")
    max_tokens_per_pack: int = Field(
        default=0,
        ge=0,
        description="Most tokens of one packed sequence, prompts included; 0 takes as many as fit into free memory.",
    )
    weighting: Literal["token", "example", "trajectory"] = Field(
        default="token",
        description="What has the same weight in the loss: each target token, each example, or each trajectory.",
    )
    validation_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the runs held out for early stopping; 0, or too few runs, holds out none.",
    )
    patience: int = Field(
        default=2,
        ge=0,
        description="Epochs without a lower held-out loss before training stops; 0 never stops early.",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine",
        description='Learning rate after the warm-up; "cosine" and "linear" end at a tenth of the highest rate.',
    )
    warmup_share: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of the optimizer steps in which the learning rate rises.",
    )
    weight_decay: float = Field(default=0.0, ge=0.0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    checkpoint_seconds: float = Field(
        default=60.0, gt=0, description="Seconds between two checkpoints of a running tuning."
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Seed of initial weights, data order and dropout.")


@dataclass(frozen=True, config=STRICT)
class GateSettings:
    """When a candidate adapter may replace the served one."""

    resamples: int = Field(default=10000, ge=100, description="Bootstrap resamples.")
    margin: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description=(
            "Largest share of its tasks that a group may lose, even where the loss is statistically significant."
        ),
    )
    never_lost: TextList = Field(
        default=(),
        description='Groups of the suite that may not lose a single task; "refusals" names the tasks to be escalated.',
    )
    min_tasks: int = Field(default=20, ge=1, description="Fewest tasks in the held-out suite.")
    suite: str = Field(
        default="",
        description="The held-out suite (JSON lines), relative to the project folder; empty when there is none yet.",
    )


@dataclass(frozen=True, config=STRICT)
class PrivacySettings:
    """What is masked in the log."""

    scrub: bool = Field(
        default=True,
        description=(
            "Mask secrets and personal data in the log, in runs and in feedback; tools still receive the real values."
        ),
    )


@dataclass(frozen=True, config=STRICT)
class ServeSettings:
    """The HTTP service."""

    host: Text = Field(
        default="127.0.0.1",
        description="Address to listen on. Any address other than loopback needs `key_file`.",
    )
    port: int = Field(default=8777, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    key_file: str = Field(
        default="",
        description="File with the key that callers must send, relative to the project folder; empty asks for none.",
    )

    @model_validator(mode="after")
    def _check_key(self) -> ServeSettings:
        if not self.key_file and not is_loopback(self.host):
            raise ValueError(f'host = "{self.host}" is open to other machines; set key_file, or host to 127.0.0.1')
        return self


@dataclass(frozen=True, config=STRICT)
class Settings:
    """All sections of `ratchet.toml`."""

    model: ModelSettings = ModelSettings()
    agent: AgentSettings = AgentSettings()
    tools: ToolSettings = ToolSettings()
    memory: MemorySettings = MemorySettings()
    tuning: TuningSettings = TuningSettings()
    gate: GateSettings = GateSettings()
    privacy: PrivacySettings = PrivacySettings()
    serve: ServeSettings = ServeSettings()
