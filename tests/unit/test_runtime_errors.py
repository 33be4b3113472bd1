"""Artifacts that are not whole, not for this machine or not of this version: one sentence, none of their code runs."""

from __future__ import annotations

import json
import platform

import pytest

from hwprune import runtime
from hwprune.errors import ArtifactError
from hwprune.fsio import sha256_file


@pytest.fixture
def artifact(tmp_path):
    """A folder that looks like an artifact; its code is never reached."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name in ("network.so", "weights.safetensors"):
        (folder / name).write_bytes(name.encode() * 100)
    tensor = {"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32"}
    manifest = {
        "format": runtime.FORMAT,
        "target": {"name": "here", "architecture": platform.machine(), "features": [], "threads": 2},
        "inputs": [tensor], "outputs": [tensor], "calls": [], "workspace_bytes": 64, "weights_bytes": 64,
        "files": {n: {"sha256": sha256_file(folder / n)} for n in ("network.so", "weights.safetensors")},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(autouse=True)
def no_code_runs(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("an artifact was loaded that should have been refused")

    monkeypatch.setattr(runtime, "Program", refuse)


def change(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder) -> str:
    with pytest.raises(ArtifactError) as caught:
        runtime.load(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["network.so", "weights.safetensors"])
def test_altered_file(artifact, name):
    data = bytearray((artifact / name).read_bytes())
    data[50] ^= 1
    (artifact / name).write_bytes(data)
    text = refusal(artifact)
    assert (
        str(artifact / name) in text
        and "is not what was compiled" in text
        and sha256_file(artifact / name)[:12] in text
    )


@pytest.mark.parametrize("name", ["network.so", "weights.safetensors"])
def test_missing_file(artifact, name):
    (artifact / name).unlink()
    assert f"{artifact} lacks {name}" in refusal(artifact)


def test_no_artifact_at_all(tmp_path):
    assert "has no manifest.json; `hwprune compile` makes one" in refusal(tmp_path)
    assert "has no manifest.json" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", "[1, 2]", "null", "{}"])
def test_manifest_that_is_none(artifact, text):
    (artifact / "manifest.json").write_text(text)
    assert "compile the artifact again" in refusal(artifact)


def test_manifest_of_another_format(artifact):
    change(artifact, format=99)
    assert "has format 99, this hwprune reads 1" in refusal(artifact)


def test_manifest_without_a_key(artifact):
    manifest = json.loads((artifact / "manifest.json").read_text())
    del manifest["target"], manifest["workspace_bytes"]
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    assert "lacks target, workspace_bytes" in refusal(artifact)


def test_manifest_that_vouches_for_no_file(artifact):
    change(artifact, files={})
    assert "lacks network.so, weights.safetensors" in refusal(artifact)


def test_artifact_for_another_architecture(artifact):
    change(artifact, target={"name": "board", "architecture": "sparc64", "features": [], "threads": 2})
    assert f"compiled for sparc64, this machine is {platform.machine()}" in refusal(artifact)


def test_artifact_that_needs_more_than_this_processor_has(artifact):
    change(
        artifact, target={"name": "later", "architecture": platform.machine(), "features": ["avx9000"], "threads": 2}
    )
    text = refusal(artifact)
    assert "needs avx9000, which this processor lacks" in text and "--target native" in text
