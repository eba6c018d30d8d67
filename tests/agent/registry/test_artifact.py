"""Sealed adapter folders: what is not whole and safe is refused, by name."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AdapterError
from agent.registry.artifact import add_documents, hash_tensors, remove_documents, seal, tensors_hash, verify

NOW = "2026-01-01T00:00:00Z"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "auto_mapping": None}


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return with_header(header, data)


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def make(home: Path, id: str, content: bytes | None = None) -> Path:
    folder = home / id
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    weights = {"a": ("F32", [2, 1], (content or id.encode())[:8].ljust(8, b"."))}
    (folder / "adapter_model.safetensors").write_bytes(safetensors(weights))
    (folder / "README.md").write_text("# card")
    return folder


def sealed(home: Path, id: str, content: bytes | None = None) -> Path:
    folder = make(home, id, content)
    seal_as(folder, id)
    return folder


def seal_as(folder: Path, id: str) -> None:
    seal(
        folder,
        id=id,
        base="smollm2",
        base_revision="1",
        dataset_hash="d",
        parent=None,
        tuning="t1",
        created_at=NOW,
        code_version="0.1",
    )


def test_a_sealed_folder_verifies(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "a1")
    manifest = verify(folder)
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert manifest.tensors_sha256 == tensors_hash(folder / "adapter_model.safetensors")
    assert (manifest.id, manifest.base, manifest.parent) == ("a1", "smollm2", None)
    assert manifest.merged == {}


def test_a_task_is_sealed_along_and_one_that_came_later_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, "a1")
    (folder / "task.json").write_text("{}")
    seal_as(folder, "a1")
    assert "task.json" in verify(folder).files
    other = sealed(tmp_path, "a2")
    (other / "task.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"does not name task\.json"):
        verify(other)


def test_documents_are_taken_out_and_the_folder_still_verifies(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "a1")
    add_documents(folder, {"report/gate.md": b"won", "report/gate.json": b"{}"})
    before = verify(folder)
    remove_documents(folder, ["report/gate.md", "README.md"])
    assert not (folder / "report" / "gate.md").exists()
    left = verify(folder)
    assert set(left.files) == {"adapter_config.json", "adapter_model.safetensors", "report/gate.json"}
    assert left.tensors_sha256 == before.tensors_sha256
    with pytest.raises(AdapterError, match="cannot be taken out"):
        remove_documents(folder, ["adapter_model.safetensors"])
    verify(folder)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def set_manifest(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed weight": (
        lambda folder: flip(folder / "adapter_model.safetensors"),
        "adapter_model.safetensors is not",
    ),
    "a changed card": (lambda folder: flip(folder / "README.md"), "README.md is not what was sealed"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "never finished"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "lacks adapter_model"),
    "a pickle": (
        lambda folder: (folder / "adapter_model.bin").write_bytes(pickle.dumps(1)),
        "adapter_model.bin",
    ),
    "a python file": (lambda folder: (folder / "modeling.py").write_text(""), "modeling.py may not be"),
    "a hidden file": (lambda folder: (folder / ".x").write_text(""), ".x may not be"),
    "a folder": (lambda folder: (folder / "more").mkdir(), "more may not be"),
    "a link": (lambda folder: (folder / "report").symlink_to("/tmp"), "report may not be"),
    "a newer manifest": (lambda folder: set_manifest(folder, version=9), "version 9.*upgrade"),
    "other tensors named": (lambda folder: set_manifest(folder, tensors_sha256="0"), "tensors of"),
    "an unknown field": (lambda folder: set_manifest(folder, surprise=1), "not a manifest"),
    "no list of files": (lambda folder: set_manifest(folder, files=[]), "not a manifest"),
    "a weight that is no number": (lambda folder: set_manifest(folder, merged={"a": "x"}), "not a manifest"),
    "no file named": (lambda folder: set_manifest(folder, files={}), "does not name adapter_config"),
    "a file outside": (lambda folder: set_manifest(folder, files={"../x": "0"}), "does not name"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "not a manifest"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_folder_is_refused_by_name(tmp_path: Path, case: str) -> None:
    tamper, said = TAMPERED[case]
    folder = sealed(tmp_path, "a1")
    tamper(folder)
    with pytest.raises(AdapterError, match=said):
        verify(folder)


def test_a_linked_file_is_refused(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "a1")
    (folder / "README.md").rename(tmp_path / "card")
    (folder / "README.md").symlink_to(tmp_path / "card")
    with pytest.raises(AdapterError, match=r"README.md is not a plain file"):
        verify(folder)
    (tmp_path / "a2").symlink_to(folder)
    with pytest.raises(AdapterError, match="not a folder"):
        verify(tmp_path / "a2")


@pytest.mark.parametrize("name", ["run.py", "x.pkl", ".hidden.md", "deep"])
def test_a_report_holds_documents_only(tmp_path: Path, name: str) -> None:
    folder = sealed(tmp_path, "a1")
    (folder / "report").mkdir()
    (folder / "report" / "gate.json").write_text("{}")
    verify(folder)
    (folder / "report" / name).write_text("")
    with pytest.raises(AdapterError, match=name):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}}, "auto_mapping"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'; expected LORA, PROMPT_TUNING, PREFIX_TUNING or LN_TUNING"),
        ({"peft_type": "PROMPT_TUNING"}, "num_virtual_tokens = None"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}}, "tokenizer_kwargs"),
        ({"r": 0}, "r = 0"),
        ({"r": True}, "r = True"),
    ],
)
def test_a_configuration_that_names_code_or_is_of_no_kind_that_is_served_is_not_sealed(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    folder = make(tmp_path, "a1")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(AdapterError, match=said):
        seal_as(folder, "a1")
    assert not (folder / "manifest.json").exists()


def test_a_report_is_added_to_a_sealed_folder(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "a1")
    before = verify(folder)
    add_documents(folder, {"report/gate.json": b"{}", "README.md": b"# better card"})
    add_documents(folder, {"report/gate.json": b'{"ship": true}'})
    after = verify(folder)
    assert set(after.files) - set(before.files) == {"report/gate.json"}
    assert after.tensors_sha256 == before.tensors_sha256
    for name in ("adapter_model.safetensors", "report/../manifest.json", "report/x.py", "../x.md"):
        with pytest.raises(AdapterError):
            add_documents(folder, {name: b""})


def test_the_hash_of_tensors_ignores_order_and_metadata_but_nothing_else(tmp_path: Path) -> None:
    a = ("F32", [1, 2], b"12345678")
    b: tuple[str, list[int], bytes] = ("BF16", [], b"12")
    path = tmp_path / "x.safetensors"

    def hashed(content: bytes) -> str:
        path.write_bytes(content)
        return tensors_hash(path)

    one = hashed(safetensors({"a": a, "b": b}))
    assert one == hashed(safetensors({"b": b, "a": a}, {"format": "pt"}))
    assert one == hash_tensors([("b", "BF16", (), b"12"), ("a", "F32", (1, 2), memoryview(b"12345678"))])
    others = [
        {"a": a},
        {"a": a, "c": b},
        {"a": ("I32", *a[1:]), "b": b},
        {"a": ("F32", [2, 1], a[2]), "b": b},
        {"a": ("F32", [1, 2], b"12345679"), "b": b},
    ]
    assert len({one, *(hashed(safetensors(other)) for other in others)}) == 6


def test_the_layout_hashed_is_the_one_written_down() -> None:
    import hashlib

    number = struct.Struct("<Q").pack
    expected = b"ratchet-tensors-1\n" + number(1) + b"a" + number(3) + b"F16" + number(2) + number(3) + number(1)
    expected += number(6) + b"abcdef"
    assert hash_tensors([("a", "F16", (3, 1), b"abcdef")]) == hashlib.sha256(expected).hexdigest()


BROKEN = {
    "an empty file": b"",
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a header that is no object": with_header([], b""),
    "an entry that is no object": with_header({"a": 1}, b""),
    "a gap": with_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"12"),
    "data behind the tensors": with_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"12"),
    "data cut off": with_header({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"12"),
    "a shape that does not fit": with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
    "a number below zero": with_header({"a": {"dtype": "U8", "shape": [-1, -2], "data_offsets": [0, 2]}}, b"12"),
    "an unknown dtype": with_header({"a": {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 2]}}, b"12"),
    "two tensors of one name": struct.pack("<Q", 17) + b'{"a": 1, "a": 2} ',
    "overlap": with_header({name: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for name in ("a", "b")}, b"12"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_safetensors_file_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(BROKEN[case])
    with pytest.raises(AdapterError, match="safetensors"):
        tensors_hash(tmp_path / "x.safetensors")


DIE_BEFORE_RENAME = """
import os, sys
from pathlib import Path
from agent.registry.artifact import add_documents, seal
sys.addaudithook(lambda event, arguments: os._exit(7) if event == "os.rename" else None)
home = Path(sys.argv[1])
if sys.argv[2] == "report":
    add_documents(home / "a1", {"report/gate.json": b"{}"})
else:
    seal(home / "c3", id="c3", base="b", base_revision="", dataset_hash="", parent=None, tuning="",
         created_at="", code_version="")
"""


def test_a_crash_between_write_and_rename_leaves_a_folder_as_it_was(tmp_path: Path) -> None:
    before = verify(sealed(tmp_path, "a1"))
    make(tmp_path, "c3")
    for act in ("report", "seal"):
        command = [sys.executable, "-c", DIE_BEFORE_RENAME, str(tmp_path), act]
        assert subprocess.run(command, cwd=Path(__file__).parents[3], timeout=60, check=False).returncode == 7
    assert verify(tmp_path / "a1") == before
    with pytest.raises(AdapterError, match="never finished"):
        verify(tmp_path / "c3")
    add_documents(tmp_path / "a1", {"report/gate.json": b"{}"})
    verify(tmp_path / "a1")
    seal_as(tmp_path / "c3", "c3")
    verify(tmp_path / "c3")
