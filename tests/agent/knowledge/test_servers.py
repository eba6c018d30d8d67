"""The vector index on servers: a real Chroma server, and a real PostgreSQL with pgvector if one is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.encoders.encoder import HashEncoder
from agent.errors import MemoryIndexError
from agent.knowledge.knowledge import Knowledge

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """Start a server, wait until its port answers, and stop it at the end."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + 60
            while not answers(port):
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(tmp_path / "server")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(command, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install ratchet-loop[postgres]")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not places or not any(Path("/usr/share/postgresql").glob("*/extension/vector.control")):
        pytest.skip("no PostgreSQL with pgvector is installed")
    if os.getuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    home, port = tmp_path / "postgres", free_port()
    home.mkdir()
    before = []
    if os.getuid() == 0:
        for folder in (*tmp_path.parents[:2], tmp_path):
            folder.chmod(0o755)
        shutil.chown(home, "postgres")
        before = ["runuser", "-u", "postgres", "--"]
    made = [*before, str(places[-1]), "-D", str(home / "data"), "-U", "ratchet", "-A", "trust"]
    subprocess.run(made, check=True, capture_output=True)
    command = [*before, str(places[-1].with_name("postgres")), "-D", str(home / "data"), "-p", str(port)]
    command += ["-k", str(home), "-c", "listen_addresses=127.0.0.1"]
    with running(command, port):
        yield f"postgresql://ratchet@127.0.0.1:{port}/postgres"


@pytest.fixture(params=["chroma", "postgres"])
def server(request: pytest.FixtureRequest) -> str:
    address: str = request.getfixturevalue(request.param)
    return address


# In a process of its own: the client of chromadb leaves its connections for the end of the process to close.
USE = """
import sys
from pathlib import Path
from agent.encoders.encoder import HashEncoder
from agent.knowledge.knowledge import Knowledge

server, folder, home = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

def opened(tenant=""):
    return Knowledge.open(home / "ratchet.db", home / "index", HashEncoder(), server=server, tenant=tenant)

memory = opened()
memory.add_folder(folder)
assert memory.search("money of refunds", 1)[0].heading == "Returns > Refunds"
other = opened("other")
other.add_folder(folder)
other.remove("returns.md")
memory.remove("stoves.txt")
memory.close()
again = opened()
assert {passage.document for passage in again.search("gas stoves", 9)} == {"returns.md", "shipping.md"}
assert {passage.document for passage in other.search("tent", 9)} == {"shipping.md", "stoves.txt"}
assert not (home / "index" / "chroma").exists()
again.rebuild()
assert again.search("money of refunds", 1)[0].heading == "Returns > Refunds"
print("all of it")
"""


def test_a_server_replaces_the_folder(server: str, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", USE, server, str(folder), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "all of it\n", done.stderr


def test_an_unknown_kind_of_server_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MemoryIndexError, match="the index 'ftp://x' is not known"):
        Knowledge.open(tmp_path / "ratchet.db", tmp_path / "index", HashEncoder(), server="ftp://x")
