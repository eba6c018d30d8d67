"""Settings: what `ratchet.toml` and a named few environment variables may say, and where the home is.

Every key has a type, a range, a default and a note; a file is checked whole and every fault is reported
at once. This is the only module that reads the environment, and of it only the names in `ENVIRONMENT`.
Whether the model, tools or suite a setting names exist is not checked here; whoever opens them says so.
A file that another user of the machine could have written is not read (`tools.trust`).
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from agent.errors import SettingsError
from agent.hosts import is_loopback
from tools.trust import TRUST, find_fault

SETTINGS_FILE = "ratchet.toml"
HOME_FOLDER = ".ratchet"
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


@dataclass(frozen=True)
class Home:
    """The folder that holds everything that lasts. Nothing here makes a folder."""

    root: Path

    @staticmethod
    def find(start: Path, environ: Mapping[str, str] | None = None) -> Home:
        """RATCHET_HOME; else `.ratchet` beside the nearest `ratchet.toml` upward; else `.ratchet` in `start`.

        A `ratchet.toml` inside a `.ratchet` counts as beside it. Left out, `environ` is the process's own.
        """
        environ = os.environ if environ is None else environ
        start = start.resolve()
        if environ.get("RATCHET_HOME"):
            return Home(start / Path(environ["RATCHET_HOME"]).expanduser())
        return Home((_project_folder(start) or start) / HOME_FOLDER)

    @property
    def database(self) -> Path:
        return self.root / "ratchet.db"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def encoders(self) -> Path:
        """The adapters of the sentence encoder."""
        return self.root / "encoders"

    @property
    def tasks(self) -> Path:
        """The folders of trained classic tasks."""
        return self.root / "tasks"

    @property
    def tunings(self) -> Path:
        return self.root / "tunings"

    @property
    def searches(self) -> Path:
        return self.root / "searches"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def workspaces(self) -> Path:
        return self.root / "workspaces"

    @property
    def lock(self) -> Path:
        return self.root / "lock"


@dataclass(frozen=True)
class Project:
    """A user's project: its folder, its home, and its settings."""

    folder: Path
    """Paths in the settings are relative to it: the folder of `ratchet.toml`, or, when that lies in a home
    called `.ratchet`, the folder beside it."""
    home: Home
    settings: Settings
    settings_file: Path | None = None
    """The file the settings came from; None when all are defaults."""
    trusted: tuple[Path, ...] = ()
    """Folders of RATCHET_TRUST."""

    def named(self, weights: str) -> str:
        """A model or encoder as the settings name it, a folder of the project made absolute."""
        folder = self.resolve(weights)
        return str(folder) if folder.is_dir() else weights

    def resolve(self, path: str) -> Path:
        """A path from the settings, made absolute."""
        return self.folder / Path(path).expanduser()


def find_project(start: Path, environ: Mapping[str, str] | None = None) -> Project:
    """The project `start` lies in. Raises SettingsError with every fault of its file and the environment.

    A `ratchet.toml` beside the project goes before the one in the home; with neither, all is default. One that
    another user could have written is a fault, unless it lies in a folder of RATCHET_TRUST.
    """
    environ = os.environ if environ is None else environ
    start = start.resolve()
    home = Home.find(start, environ)
    nearest = _project_folder(start)
    candidates = [*([nearest / SETTINGS_FILE] if nearest else []), home.root / SETTINGS_FILE]
    file = next((candidate for candidate in candidates if _is_file(candidate)), None)
    inside = file is not None and file.parent.name == HOME_FOLDER
    trusted, more = _read_trust(environ)
    if file is not None:
        fault = find_fault(file, trusted) or (find_fault(file.parent.parent, trusted) if inside else None)
        if fault is not None:
            raise SettingsError(str(file), [fault, *more])
    settings, faults = (Settings(), []) if file is None else _read(file)
    settings, others = _apply_environment(settings, environ)
    more += others
    if faults or more:
        raise SettingsError(str(file) if faults and file else "the environment", [*faults, *more])
    if file is None:
        return Project(start, home, settings, None, trusted)
    return Project(file.parent.parent if inside else file.parent, home, settings, file, trusted)


def load_settings(path: Path) -> Settings:
    """Read one `ratchet.toml`. Raises SettingsError with every fault found."""
    settings, faults = _read(path)
    if faults:
        raise SettingsError(str(path), faults)
    return settings


def settings_template() -> str:
    """A `ratchet.toml` with every section, key, note and default; `load_settings` gives back the defaults."""
    lines = ["# Settings of Ratchet. Every key is shown with its default; a key that is left out keeps it."]
    notes = _notes()
    for name, section in _sections(Settings()):
        lines += ["", f"# {notes[type(section).__name__]}", f"[{name}]"]
        for key in fields(section):
            lines.append(f"# {notes[f'{type(section).__name__}.{key.name}']}")
            lines.append(f"{key.name} = {_toml(getattr(section, key.name))}")
    return "\n".join(lines) + "\n"


def _project_folder(start: Path) -> Path | None:
    """The nearest folder from `start` up that has settings, beside or inside its home."""
    for folder in (start, *start.parents):
        if _is_file(folder / SETTINGS_FILE) or _is_file(folder / HOME_FOLDER / SETTINGS_FILE):
            return folder.parent if folder.name == HOME_FOLDER else folder
    return None


def _is_file(path: Path) -> bool:
    """Whether there is such a file; what lies in another user's closed folder is not there."""
    try:
        return path.is_file()
    except PermissionError:
        return False


def _sections(settings: Settings) -> Iterator[tuple[str, Any]]:
    for section in fields(settings):
        yield section.name, getattr(settings, section.name)


def _read(path: Path) -> tuple[Settings, list[str]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as fault:
        return Settings(), [f"cannot be read ({fault.strerror}); run `ratchet init` to write one"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        return Settings(), [f"not TOML: {fault}"]
    known = dict(_sections(Settings()))
    faults: list[str] = []
    read: dict[str, Any] = {}
    for name, values in data.items():
        if name not in known:
            faults.append(_unknown(name, values, known))
        elif not isinstance(values, dict):
            faults.append(f"{name} = {_shown(values)}: expected a section, written as [{name}]")
        else:
            read[name], more = _section(name, known[name], values)
            faults += more
    settings = Settings(**read)
    if not faults and not settings.serve.key_file and not is_loopback(settings.serve.host):
        faults.append(
            f"[serve] host = {_shown(settings.serve.host)} is open to other machines; "
            "set key_file, or host to 127.0.0.1"
        )
    return settings, faults


def _unknown(name: str, values: object, known: Mapping[str, Any]) -> str:
    if isinstance(values, dict):
        return f"unknown section [{name}]{_meant(name, known) or '; sections are ' + ', '.join(known)}"
    homes = [section for section, default in known.items() if name in {key.name for key in fields(default)}]
    hint = f"; it belongs in {' or '.join(f'[{home}]' for home in homes)}" if homes else "; keys stand in a section"
    return f"unknown key {name} outside a section{hint}"


def _section(name: str, default: Any, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The section with what could be read, and what could not."""
    keys = {key.name: key for key in fields(default)}
    types = get_type_hints(type(default))
    faults: list[str] = []
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in keys:
            faults.append(f"[{name}] unknown key {key}{_meant(key, keys) or '; keys are ' + ', '.join(keys)}")
            continue
        cast, wanted = _cast(value, types[key])
        rule = keys[key].metadata
        if wanted is None and rule and not rule["fits"](cast):
            wanted = rule["expected"]
        if wanted is None:
            read[key] = cast
        else:
            faults.append(f"[{name}] {key} = {_shown(value)}: expected {wanted}")
    return replace(default, **read), faults


def _cast(value: Any, wanted: Any) -> tuple[Any, str | None]:
    """The value as its field holds it, or what was expected instead."""
    if wanted is bool:
        return value, None if isinstance(value, bool) else "true or false"
    if wanted is int:
        return value, None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if wanted is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return value, "a number"
        return float(value), None
    if wanted is str:
        return value, None if isinstance(value, str) else "a text in quotes"
    if wanted == Mapping[str, str]:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            return value, 'names with texts, such as { name = "text" }'
        return value, None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return value, 'a list of texts, such as ["a", "b"]'
    return tuple(value), None


def _read_trust(environ: Mapping[str, str]) -> tuple[tuple[Path, ...], list[str]]:
    """The folders of RATCHET_TRUST, and what is wrong with it."""
    folders = [Path(one).expanduser() for one in environ.get(TRUST, "").split(os.pathsep) if one.strip()]
    faults = [f"{TRUST} = {_shown(str(one))}: expected an absolute folder" for one in folders if not one.is_absolute()]
    return tuple(one.resolve() for one in folders if one.is_absolute()), faults


def _apply_environment(settings: Settings, environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    text = environ.get("RATCHET_THREADS", "").strip()
    if not text:
        return settings, []
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text[:9]) <= 1024:
        return settings, [f"RATCHET_THREADS = {_shown(text)}: expected a whole number, 0 to 1024"]
    return replace(settings, model=replace(settings.model, threads=int(text))), []


def _meant(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, float):
        return repr(value)
    # TOML's basic strings, booleans and whole numbers are written as JSON writes them.
    return json.dumps(value)


def _notes() -> dict[str, str]:
    """The notes below the fields, read from this module's own source, so that they are written once."""
    notes: dict[str, str] = {}
    for node in ast.parse(Path(__file__).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        notes[node.name] = ast.get_docstring(node) or ""
        for key, note in zip(node.body, node.body[1:], strict=False):
            if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(note, ast.Expr):
                notes[f"{node.name}.{key.target.id}"] = " ".join(str(ast.literal_eval(note.value)).split())
    return notes
