"""The command line: help, exit codes, what goes to stdout and stderr. Jobs themselves are tested end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from stopwatch import least_seconds
from typer.testing import CliRunner

from hwprune.cli import app
from hwprune.errors import HwpruneError, MeasureError, UsageError
from hwprune.terminal import reporting

COMMANDS = [
    ["search"],
    ["finetune"],
    ["compile"],
    ["run"],
    ["bench"],
    ["measure"],
    ["inspect"],
    ["targets", "list"],
    ["targets", "show"],
    ["targets", "check"],
    ["targets", "new"],
]


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


# Help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(command: list[str]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "  hwprune " + " ".join(command) in result.stdout
    assert "--json" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['hwprune', '--help']\n"
        "import atexit\n"
        "heavy = {'torch', 'tvm', 'numpy', 'rich.console', 'pydantic'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        "from hwprune.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["run", "--help"], ["targets", "list"], ["targets", "show", "rpi4"]], ids=" ".join
)
def test_run_and_targets_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        f"import sys, atexit; sys.argv = {['hwprune', *arguments]!r}\n"
        "atexit.register(lambda: print('HEAVY', sorted(set(sys.modules) & {'torch', 'tvm'})))\n"
        "from hwprune.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "hwprune", "--help"], [str(Path(sys.executable).parent / "hwprune"), "--help"]],
    ids=["python -m hwprune", "hwprune"],
)
def test_help_answers_at_once(command: list[str]) -> None:
    if not Path(command[0]).exists():
        pytest.skip(f"{command[0]} is not installed")
    assert least_seconds(lambda: subprocess.run(command, check=True, capture_output=True), 0.4) < 0.4


# How failures end


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MeasureError("the board is gone"), 1),
        (UsageError("no such thing"), 2),
        (KeyboardInterrupt(), 130),
        (ValueError("odd"), 1),
    ],
)
def test_every_failure_has_its_exit_code_and_one_line(
    error: BaseException, code: int, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(typer.Exit) as caught, reporting(as_json=False, debug=False):
        raise error
    out, err = capsys.readouterr()
    assert caught.value.exit_code == code
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1


def test_an_interrupt_says_that_measurements_are_kept(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(typer.Exit), reporting(as_json=False, debug=False):
        raise KeyboardInterrupt
    assert "kept and will be reused" in capsys.readouterr().err


def test_a_defect_says_how_to_report_it_and_debug_prints_the_traceback(
    capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.delenv("HWPRUNE_DEBUG", raising=False)
    for debug in (False, True):
        with pytest.raises(typer.Exit), reporting(as_json=False, debug=debug):
            raise KeyError("gone")
        err = capsys.readouterr().err
        assert "--debug" in err
        assert ("Traceback" in err) == debug


def test_hwprune_debug_prints_the_traceback_too(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_DEBUG", "1")
    with pytest.raises(typer.Exit), reporting(as_json=False, debug=False):
        raise HwpruneError("no")
    assert "Traceback" in capsys.readouterr().err


def test_a_failure_with_json_is_json(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(typer.Exit), reporting(as_json=True, debug=False):
        raise UsageError("no such thing")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"type": "UsageError", "message": "no such thing", "exit_code": 2}}
    assert err == "error: no such thing\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search"], "--target"),
        (["search", "--target", "rpi44"], "did you mean rpi4"),
        (["search", "--target", "x86", "--latency", "3"], "budget '3' is not understood"),
        (["search", "--target", "x86", "--memory", "4 apples"], "memory budget '4 apples'"),
        (["search", "--target", "x86", "--finetune", "-1"], "--finetune"),
        (["nosuch"], "nosuch"),
        (["inspect", "net.py:build", "--target", "rpi44"], "did you mean rpi4"),
        (["compile", "net.py:build", "--out", "a"], "--target must be given"),
        (["compile", "net.py:build"], "--target and --out must be given"),
        (["bench", "runs/demo", "--vs", "onnx"], "unknown engine 'onnx'"),
        (["run", "nowhere", "--input", "x.npy"], "--output"),
        (["targets", "show", "rpi44"], "did you mean rpi4"),
        (["targets", "new", "board"], "--extends"),
        (["targets", "new", "board", "--probe", "--probe-results", "probe.json"], "contradict"),
        (["targets", "new", "board", "--extends", "h100", "--probe"], "this machine cannot be probed with its instructions"),
        (["targets", "new", "board", "--probe-results", "nowhere.json"], "cannot read nowhere.json"),
        (["targets", "probe", "--target", "h100"], "write the program for it with --program"),
        (["targets", "new", "My Board", "--extends", "rpi4"], "'My Board'"),
        (["targets", "new", "native", "--extends", "rpi4"], "'native'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_ends_with_2_and_says_what(folder: Path, arguments: list[str], says: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


# inspect

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.middle(torch.relu(self.conv2(torch.relu(self.conv1(x))))).mean((2, 3)))

    def middle(self, x):
        return x

class Odd(Net):
    def middle(self, x):
        return torch.cumsum(x, 2)

build, odd = Net, Odd
"""


def inspect(folder: Path, spec: str, *arguments: str):
    (folder / "net.py").write_text(NET)
    store = ("--store", str(folder / "store.sqlite"))
    result = call("inspect", spec, "--input-shape", "1x1x6x6", *store, *arguments)
    assert result.exit_code == 0, result.stderr
    return result


def test_inspect_prints_shares_for_the_target_and_the_frozen_axes(folder: Path) -> None:
    text = inspect(folder, "net.py:build", "--target", "rpi4").stdout
    # 16 pixels x 9 x 1 x 8, then 4 pixels x 9 x 8 x 6, then 6 x 2
    assert "target rpi4: 2,892 MACs, " in text and "latency, analytic" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if " % " in line}
    assert rows["conv1"][1:4] == ["8", f"{100 * (1152 + 1728) / 2892:.1f}", "%"]
    assert rows["conv2"][1:4] == ["6", f"{100 * (1728 + 12) / 2892:.1f}", "%"]
    [frozen] = [line for line in text.splitlines() if "fc.bias" in line]
    assert "network output" in frozen and "fc (" in frozen and "net.py:11)" in frozen


def test_inspect_as_json_and_without_a_target(folder: Path) -> None:
    report = json.loads(inspect(folder, "net.py:build", "--json").stdout)
    assert report["target"] == "native" and report["macs"] == 2892 and report["missing"] == ""
    assert report["latency_us"]["provenance"] == "analytic" and report["kernels_measured"] == 0
    for group in report["groups"]:
        assert 0 < group["macs_share"] < 1 and 0 < group["latency_share"]["value"] < 1
        assert group["latency_share"]["provenance"] == "analytic"


def test_inspect_of_a_network_without_kernels_says_so_and_draws(folder: Path) -> None:
    result = inspect(folder, "net.py:odd", "--target", "rpi4", "--dot", "net.dot")
    [said] = [line for line in result.stdout.splitlines() if line.startswith("no shares")]
    assert "aten.cumsum" in said and "net.py:11" in said
    assert "conv1" in result.stdout and " % " not in result.stdout
    assert '"conv1.weight[0]" -> "conv1";' in (folder / "net.dot").read_text()


# Measuring on devices


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "measure needs --target"),
        (["--target", "rpi4", "--bundle", "b.tar", "--import", "r.json"], "three ways to reach a device; give one"),
        (["--import", "r.json", "--model", "net.py:build"], "takes no --model: the file says what was measured"),
        (["--target", "rpi4", "--rpc", "127.0.0.1:9190"], "--rpc and --key go together"),
        (["--target", "rpi4", "--emulated"], "--emulated goes with --import and --rpc"),
        (["--target", "rpi4", "--rpc", "nowhere", "--key", "rpi4", "--model", "bundled:digits_resnet"], "write host:port"),
        (["--import", "r.json"], "cannot read r.json: No such file or directory"),
        (["--target", "rpi4", "--model", "bundled:digits_resnet"], "pack the kernels for a device with --bundle"),
    ],
)
def test_measure_says_what_does_not_go_together(folder: Path, arguments: list[str], said: str) -> None:
    result = call("measure", *arguments)
    assert result.exit_code == 2 and result.stderr.count("error: ") == 1
    assert said in " ".join(result.stderr.split())


# Targets


def test_targets_list_as_json(folder: Path) -> None:
    data = json.loads(call("targets", "list", "--json").stdout)
    assert {"arm", "native", "rpi4", "x86"} <= {row["name"] for row in data}


def test_targets_list_survives_an_invalid_profile(folder: Path) -> None:
    (folder / "targets").mkdir()
    (folder / "targets" / "bad.toml").write_text("cores = 0\n")
    result = call("targets", "list", "--json")
    [bad] = [row for row in json.loads(result.stdout) if row["name"] == "bad"]
    assert result.exit_code == 0 and not bad["valid"] and "cores" in bad["error"]


def test_targets_new_then_check_then_show(folder: Path) -> None:
    assert call("targets", "new", "board", "--extends", "rpi5").exit_code == 0
    assert call("targets", "check", "board").exit_code == 0
    shown = call("targets", "show", "board")
    assert 'name = "board"' in shown.stdout and "2.4 GHz" in shown.stdout
    again = call("targets", "new", "board", "--extends", "rpi4")
    assert again.exit_code == 2 and "--force" in again.stderr
    assert "rpi5" in (folder / "targets" / "board.toml").read_text()


def test_targets_check_prints_every_complaint_and_exits_with_2(folder: Path) -> None:
    (folder / "bad.toml").write_text('extends = "rpi4"\ncores = 0\ncolour = "red"\n')
    result = call("targets", "check", "bad.toml")
    assert result.exit_code == 2
    assert (
        "`cores` = 0" in result.stdout and "unknown key `colour`" in result.stdout and "2 complaints" in result.stdout
    )
    as_json = json.loads(call("targets", "check", "bad.toml", "--json").stdout)
    assert as_json["valid"] is False and len(as_json["complaints"]) == 2


def test_targets_check_notes_a_figure_without_source(folder: Path) -> None:
    (folder / "mine.toml").write_text('extends = "rpi4"\n[core]\nfrequency_mhz = 1800\n')
    result = call("targets", "check", "mine.toml")
    assert result.exit_code == 0 and "no source for core.frequency_mhz" in result.stdout


def test_a_read_only_folder_is_one_sentence(folder: Path) -> None:
    (folder / "targets").write_text("a file where the folder should be")
    result = call("targets", "new", "board", "--extends", "rpi4")
    assert result.exit_code == 1 and "cannot write targets/board.toml" in result.stderr


def test_stdout_that_is_closed_early_leaves_no_traceback(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "hwprune", "targets", "show", "rpi4"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
