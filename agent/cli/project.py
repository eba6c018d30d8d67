"""The commands `init`, `doctor`, `models`, `bench`, `adapters`, `rollback`, `serve` and `version`."""

from __future__ import annotations

import importlib.metadata
import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict
from typing import Any

from agent.cli.console import line_printer, note, result, result_json, table
from agent.cli.session import Session
from agent.config.project import SETTINGS_FILE, Home, Project
from agent.config.reader import settings_template
from agent.config.settings import Settings
from agent.errors import RatchetError, SettingsError


def version_text() -> str:
    """Return the name and the installed version."""
    try:
        return f"ratchet {importlib.metadata.version('ratchet-loop')}"
    except importlib.metadata.PackageNotFoundError:
        return "ratchet (not installed; run from a checkout)"


def version(arguments: Namespace, session: Session) -> int:
    """Print the version."""
    result(version_text())
    return 0


def init(arguments: Namespace, session: Session) -> int:
    """Write a `ratchet.toml` with every key, unless one exists."""
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
    """Check the machine and the project. The exit code is 1 when something is missing."""
    from agent.cli.doctor import diagnose

    settings_error = None
    try:
        project = session.project
    except SettingsError as fault:
        project, settings_error = Project(session.folder, Home.find(session.folder), Settings()), fault
    findings = diagnose(project, settings_error)
    if arguments.json:
        result_json([asdict(finding) for finding in findings])
    else:
        print_line = line_printer(sys.stdout)
        width = max(len(finding.what) for finding in findings)
        styles = {"ok": "", "warn": "yellow", "missing": "bold red"}
        for finding in findings:
            print_line(f"{finding.level:<8}{finding.what:<{width}}  {finding.found}", styles[finding.level])
            if finding.advice:
                print_line(f"{'':<{width + 10}}-> {finding.advice}", styles[finding.level])
    return 1 if any(finding.level == "missing" for finding in findings) else 0


def models(arguments: Namespace, session: Session) -> int:
    """List the models on this machine."""
    from agent.llm.weights.load import list_models

    entries = list_models(session.project.home.models)
    if arguments.json:
        result_json([asdict(entry) for entry in entries])
        return 0
    settings = session.project.settings.model
    rows = [
        [
            ("* " if entry.name in (settings.base, settings.encoder) else "  ") + entry.name,
            entry.kind,
            entry.state,
            f"{entry.size / 10**6:,.0f} MB",
            entry.advice or entry.where,
        ]
        for entry in entries
    ]
    result(table(rows, ["  name", "kind", "state", "size", "where, or what to do"]))
    return 0


def bench(arguments: Namespace, session: Session) -> int:
    """Measure how fast the base model is on this machine."""
    from agent.llm.benchmark import measure_speed
    from agent.llm.chat_model import LocalModel

    with session.runtime() as runtime:
        model = runtime.model
        if not isinstance(model, LocalModel):
            raise RatchetError(f"only a local model can be measured, and this project uses a {type(model).__name__}")
        speed = measure_speed(model.engine, say=session.note)
    if arguments.json:
        shares = {name: getattr(speed, name) for name in ("known_first_token_share", "share_of_memory_limit")}
        result_json({"model": model.base, **asdict(speed), **shares})
        return 0
    share, known = speed.share_of_memory_limit, speed.known_first_token_share
    together = f"decoding, {speed.sessions} sessions at once"
    rows = [
        ["model", f"{model.base}, {speed.weights_bytes / 1e6:,.0f} MB of weights as they are held"],
        ["forward pass", "fused" if speed.lean else "that of transformers; the fused one is for Llama-like decoders"],
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
    """List the adapters with their states, and the one that the next run will use."""
    from agent.registry.registry import Registry

    registry = Registry(session.project.home.adapters)
    entries, serving = registry.list(), registry.serving()
    served = None if serving.adapter is None else serving.adapter.id
    if serving.warning:
        note(serving.warning)
    if arguments.json:
        rows: list[dict[str, Any]] = [{**asdict(entry), "served": entry.id == served} for entry in entries]
        result_json({"served": served, "adapters": rows, "history": [asdict(change) for change in registry.history()]})
        return 0
    if entries:
        cells = [
            [
                "* " + entry.id if entry.id == served else "  " + entry.id,
                entry.state,
                " + ".join(entry.merged) or entry.parent or "base",
                entry.added_at,
                entry.tensors_sha256[:12],
            ]
            for entry in entries
        ]
        result(table(cells, ["  adapter", "state", "made from", "added", "tensors"]))
    result(f"served: {served or 'the base'}")
    return 0


def rollback(arguments: Namespace, session: Session) -> int:
    """Serve the adapter that was served before."""
    from agent.registry.registry import Registry
    from agent.util.ids import timestamp

    adapter = Registry(session.project.home.adapters).rollback(arguments.reason, timestamp())
    if arguments.json:
        result_json({"served": None if adapter is None else adapter.id})
    elif not arguments.quiet:
        result(f"{'the base' if adapter is None else f'adapter {adapter.id}'} is served from the next run on")
    return 0


# -- service -------------------------------------------------------------------------------------------------


def serve(arguments: Namespace, session: Session) -> int:
    """Run the HTTP service until Ctrl-C. Its log goes to standard error."""
    try:
        import uvicorn

        from agent.serve.app import check_bind, create_app, read_key
    except ModuleNotFoundError as fault:
        raise RatchetError(
            f"the service needs {fault.name}, which is not installed; pip install ratchet-loop[serve]"
        ) from None
    project = session.project
    settings = project.settings.serve
    host = arguments.host or settings.host
    port = settings.port if arguments.port is None else arguments.port
    key = read_key(project.resolve(settings.key_file)) if settings.key_file else None
    check_bind(host, key)
    with closing(session.runtime()) as runtime:
        runtime.frame()  # reports faults of the tools before a model is loaded
        runtime.stepper()
        note(f"serving on http://{host}:{port}{'' if key is None else ' (callers need the key)'}; press Ctrl-C to stop")
        uvicorn.run(
            create_app(runtime, key=key),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    return 0
