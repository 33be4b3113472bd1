"""A new board in ten minutes: the tutorial of docs/targets.md, its commands as they stand there, on an emulated board."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from hwprune import target
from hwprune.target import load_file, shipped_folder

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"


def tutorial() -> list[str]:
    """The commands of the tutorial, in order."""
    section = re.search(r"## A new board in ten minutes\n(.*?)\n## ", PAGE.read_text(), re.DOTALL)[1]
    return [line.strip() for line in section.splitlines() if line.startswith("    ") and not line.strip().startswith("#")]


def test_commands_of_the_tutorial(arm_board, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    link = load_file(shipped_folder() / "rpi4.toml").link
    hwprune = f"{sys.executable} -m hwprune"
    commands = tutorial()
    assert len(commands) >= 5
    for command in commands:
        # What the page has a person do on the board, over ssh, is done by the emulator.
        here = re.sub(r"^ssh \S+ ", "", command)
        here = re.sub(r"^(\./\S+)", rf"{' '.join(link.emulator)} \1 --seconds 0.05", here) if here != command else here
        if command.startswith("scp "):
            continue
        here = re.sub(r"^hwprune ", f"{hwprune} ", here)
        done = subprocess.run(here, shell=True, capture_output=True, text=True, env=os.environ | {"QEMU_LD_PREFIX": link.sysroot}, timeout=240)
        assert done.returncode == 0, f"{here}: {done.stderr}"
    profile = target.load("myboard")
    assert profile.unsourced() == [] and profile.architecture == "aarch64"
    assert "under an emulator" in profile.source["core.fma_per_cycle"]
    found = json.loads((tmp_path / "probe.json").read_text())
    assert (found["architecture"], found["isa"]) == ("aarch64", "neon") and found["network_us"] is not None
