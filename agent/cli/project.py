"""Everything around the runs: `init`, `doctor`, `models`, `bench`, the adapters, `serve` and `version`."""

from __future__ import annotations

import importlib.metadata
import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agent.cli.console import note, result, result_json, speaker, table
from agent.cli.session import Session
from agent.config.project import SETTINGS_FILE, Home, Project
from agent.config.reader import settings_template
from agent.config.settings import Settings
from agent.errors import RatchetError, SettingsError

if TYPE_CHECKING:
    pass


def version_text() -> str:
    try:
        return f"ratchet {importlib.metadata.version('ratchet-loop')}"
    except importlib.metadata.PackageNotFoundError:
        return "ratchet (not installed; run from a checkout)"


def version(arguments: Namespace, session: Session) -> int:
    result(version_text())
    return 0


def init(arguments: Namespace, session: Session) -> int:
    """Write a `ratchet.toml` with every key, unless there is one."""
    text = settings_template()
    if arguments.print:
        print(text, end="")
        return 0
    path = session.folder / SETTINGS_FILE
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SettingsError(str(path), ["exists already; edit it, or look at `ratchet init --print`"]) from None
    except OSError as fault:
        raise SettingsError(str(path), [f"cannot be written ({fault.strerror})"]) from fault
    result(f"wrote {path}")
    return 0


def doctor(arguments: Namespace, session: Session) -> int:
    """What is there and what is missing. Exit code 1 when something is missing."""
    from agent.cli.doctor import diagnose

    refused = None
    try:
        project = session.project
    except SettingsError as fault:
        project, refused = Project(session.folder, Home.find(session.folder), Settings()), fault
    findings = diagnose(project, refused)
    if arguments.json:
        result_json([asdict(one) for one in findings])
    else:
        say = speaker(sys.stdout)
        width = max(len(one.what) for one in findings)
        styles = {"ok": "", "warn": "yellow", "missing": "bold red"}
        for one in findings:
            say(f"{one.level:<8}{one.what:<{width}}  {one.found}", styles[one.level])
            if one.advice:
                say(f"{'':<{width + 10}}-> {one.advice}", styles[one.level])
    return 1 if any(one.level == "missing" for one in findings) else 0


def models(arguments: Namespace, session: Session) -> int:
    from agent.llm.weights.load import list_models

    entries = list_models(session.project.home.models)
    if arguments.json:
        result_json([asdict(one) for one in entries])
        return 0
    chosen = session.project.settings.model
    rows = [
        [
            ("* " if one.name in (chosen.base, chosen.encoder) else "  ") + one.name,
            one.kind,
            one.state,
            f"{one.size / 10**6:,.0f} MB",
            one.advice or one.where,
        ]
        for one in entries
    ]
    result(table(rows, ["  name", "kind", "state", "size", "where, or what to do"]))
    return 0


def bench(arguments: Namespace, session: Session) -> int:
    """How fast the base model is on this machine."""
    from agent.llm.benchmark import measure_speed
    from agent.llm.chat_model import LocalModel

    with session.runtime() as runtime:
        model = runtime.model
        if not isinstance(model, LocalModel):
            raise RatchetError(f"only a local model can be measured, and here a {type(model).__name__} is used")
        speed = measure_speed(model.engine, say=session.note)
    if arguments.json:
        shares = {name: getattr(speed, name) for name in ("known_first_token_share", "share_of_memory_limit")}
        result_json({"model": model.base, **asdict(speed), **shares})
        return 0
    share, known = speed.share_of_memory_limit, speed.known_first_token_share
    together = f"decoding, {speed.sessions} sessions at once"
    rows = [
        ["model", f"{model.base}, {speed.weights_bytes / 1e6:,.0f} MB of weights as they are held"],
        ["its pass", "lean" if speed.lean else "that of transformers; the lean one is for decoders of the Llama kind"],
        ["reading a prompt", f"{speed.prompt_tokens_per_second:,.0f} tokens/s"],
        [f"first token behind {speed.prompt_tokens:,} tokens", f"{speed.first_token_seconds:.2f} s"],
        ["the same, four fifths read before", f"{speed.known_first_token_seconds:.2f} s, {known:.0%} of it"],
        ["decoding, one session", f"{speed.decode_tokens_per_second:.1f} tokens/s"],
        [together, f"{speed.decode_tokens_per_second_together:.1f} tokens/s"],
        ["reading memory", f"{speed.memory_bytes_per_second / 1e9:.1f} GB/s, which decoding uses {share:.0%} of"],
    ]
    result(table(rows, ["", ""]).lstrip())
    return 0


# -- adapters ------------------------------------------------------------------------------------------------


def adapters(arguments: Namespace, session: Session) -> int:
    """What was trained, in what state, and what the next run will use."""
    from agent.registry.registry import Registry

    registry = Registry(session.project.home.adapters)
    known, serving = registry.list(), registry.serving()
    served = None if serving.adapter is None else serving.adapter.id
    if serving.warning:
        note(serving.warning)
    if arguments.json:
        rows: list[dict[str, Any]] = [{**asdict(one), "served": one.id == served} for one in known]
        result_json({"served": served, "adapters": rows, "history": [asdict(one) for one in registry.history()]})
        return 0
    if known:
        cells = [
            [
                "* " + one.id if one.id == served else "  " + one.id,
                one.state,
                " + ".join(one.merged) or one.parent or "base",
                one.added_at,
                one.tensors_sha256[:12],
            ]
            for one in known
        ]
        result(table(cells, ["  adapter", "state", "made from", "added", "tensors"]))
    result(f"served: {served or 'the base'}")
    return 0


def rollback(arguments: Namespace, session: Session) -> int:
    """Serve what was served before."""
    from agent.registry.registry import Registry

    done = Registry(session.project.home.adapters).rollback(arguments.reason, _now())
    if arguments.json:
        result_json({"served": None if done is None else done.id})
    elif not arguments.quiet:
        result(f"{'the base' if done is None else f'adapter {done.id}'} is served from the next run on")
    return 0


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="milliseconds")


# -- service -------------------------------------------------------------------------------------------------


def serve(arguments: Namespace, session: Session) -> int:
    """The HTTP service, until Ctrl-C."""
    try:
        import uvicorn

        from agent.serve.app import check_bind, create_app, read_key
    except ModuleNotFoundError as fault:
        raise RatchetError(
            f"the service needs {fault.name}, which is not installed; pip install ratchet-loop[serve]"
        ) from None
    project = session.project
    chosen = project.settings.serve
    host = arguments.host or chosen.host
    port = chosen.port if arguments.port is None else arguments.port
    key = read_key(project.resolve(chosen.key_file)) if chosen.key_file else None
    check_bind(host, key)
    with closing(session.runtime()) as runtime:
        runtime.frame()  # what is wrong with the tools is told before a model is loaded
        runtime.stepper()
        note(f"serving on http://{host}:{port}{'' if key is None else ' (a key is asked for)'}; Ctrl-C ends it")
        uvicorn.run(
            create_app(runtime, key=key),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    return 0
