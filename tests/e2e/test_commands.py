"""Whole commands, as a user runs them: in a process of their own, judged by files, output and exit code."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


class Branching(Net):
    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return super().forward(x)


def build():
    torch.manual_seed(0)
    return Net()


def branching():
    return Branching()
"""


def hwprune(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hwprune", *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "XDG_CONFIG_HOME": str(cwd / "config")}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=580, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(NET)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> dict:
    """The main job on this machine, once: search, a little training, compile."""
    done = hwprune("search", "--target", "native", "--finetune", "4", "--compile", "--out", "run", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return {"stderr": done.stderr, **json.loads(done.stdout)}


def rows(run: dict) -> dict[str, dict]:
    return {row["quantity"]: row for row in run["rows"]}


def test_the_main_job_says_that_it_uses_the_bundled_network(run: dict) -> None:
    assert "using the bundled network bundled:digits_resnet and its data, digits" in run["stderr"]


def test_the_main_job_keeps_its_budget_and_its_accuracy(run: dict) -> None:
    table = rows(run)
    predicted = table["latency, predicted"]
    assert predicted["pruned"]["value"] <= 0.5 * predicted["dense"]["value"] * 1.001
    assert table["accuracy"]["pruned"]["value"] > 90
    for quantity in ("parameters", "MACs", "size on disk"):
        assert table[quantity]["pruned"]["value"] < table[quantity]["dense"]["value"]


def test_every_figure_of_the_table_has_its_provenance(run: dict) -> None:
    found = {row["quantity"]: row["pruned"]["provenance"] for row in run["rows"]}
    assert found["latency, measured"] == found["latency, predicted"] == found["accuracy"] == "measured"
    assert found["MACs"] == found["parameters"] == "counted"


def test_the_run_folder_is_complete(run: dict, folder: Path) -> None:
    names = {path.name for path in (folder / "run").iterdir()}
    assert {
        "plan.json",
        "frontier.json",
        "run.json",
        "proof.json",
        "rewrites.json",
        "dense.safetensors",
        "model.safetensors",
        "artifact",
        "artifact_dense",
    } <= names
    assert json.loads((folder / "run" / "proof.json").read_text())["passed"] is True
    assert json.loads((folder / "run" / "run.json").read_text())["status"] == "finished"


def test_a_finished_run_is_not_overwritten(run: dict, folder: Path) -> None:
    before = (folder / "run" / "plan.json").read_bytes()
    done = hwprune("search", "--target", "native", "--out", "run", cwd=folder)
    assert done.returncode == 2 and "--force" in done.stderr
    assert (folder / "run" / "plan.json").read_bytes() == before


def test_the_artifact_computes_what_the_pruned_model_does(run: dict, folder: Path) -> None:
    import torch

    from hwprune.api import load_run

    x = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    np.save(folder / "x.npy", x)
    done = hwprune("run", "run/artifact", "--input", "x.npy", "--output", "y.npy", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"output": "y.npy", "shape": [1, 10], "dtype": "float32"}
    with torch.no_grad():
        expected = load_run(folder / "run").model.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.load(folder / "y.npy"), expected, atol=1e-4 * np.abs(expected).max())


def test_run_imports_neither_torch_nor_the_compiler(run: dict, folder: Path) -> None:
    np.save(folder / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    arguments = ["hwprune", "run", "run/artifact", "--input", "x.npy", "--output", "z.npy"]
    code = (
        f"import sys, atexit; sys.argv = {arguments!r}\n"
        "atexit.register(lambda: print('HEAVY', sorted(set(sys.modules) & {'torch', 'tvm'})))\n"
        "from hwprune.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert "HEAVY []" in done.stdout, done.stderr
    assert (folder / "z.npy").exists()


def test_bench_times_both_networks_of_a_run(run: dict, folder: Path) -> None:
    done = hwprune("bench", "run", "--vs", "torch", "--rounds", "3", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    timed = json.loads(done.stdout)
    assert len(timed) >= 3 and all(row["median_us"] > 0 and row["provenance"] == "measured" for row in timed)


def test_finetune_goes_on_from_a_run(run: dict, folder: Path) -> None:
    done = hwprune("finetune", "run", "--epochs", "1", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert rows(json.loads(done.stdout))["accuracy"]["pruned"]["value"] > 90


def test_inspect_of_a_users_model(folder: Path) -> None:
    done = hwprune(
        "inspect",
        "net.py:build",
        "--input-shape",
        "3x16x16",
        "--freeze",
        "conv2*",
        "--json",
        "--dot",
        "net.dot",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [group["id"] for group in report["groups"]] == ["conv1"]
    assert {"network output", "user"} <= {row["reason"] for row in report["frozen"]}
    assert '"conv1"' in (folder / "net.dot").read_text()


def test_a_search_without_data_says_that_accuracy_is_unknown(folder: Path) -> None:
    done = hwprune(
        "search",
        "--target",
        "arm",
        "--model",
        "net.py:build",
        "--input-shape",
        "1x3x16x16",
        "--latency",
        "0.8x",
        "--out",
        "nodata",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    accuracy = next(line for line in done.stdout.splitlines() if "accuracy" in line)
    assert "unknown" in accuracy
    assert "target 'arm' stands for rpi4" in done.stderr
    assert ("simulated" if importlib.util.find_spec("osaca") else "analytic") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--model", "net.py:biuld", "--input-shape", "3x16x16"], 2, "biuld"),
        (["--model", "net.py:build"], 2, "--input-shape"),
        (["--model", "net.py:branching", "--input-shape", "3x16x16"], 1, "net.py"),
        (["--model", "net.py:build", "--data", "digits"], 2, "digits"),
        (
            ["--model", "net.py:build", "--input-shape", "3x16x16", "--weights", "nowhere.safetensors"],
            2,
            "nowhere.safetensors",
        ),
        (["--model", "net.py:build", "--input-shape", "3x16x16", "--finetune", "3"], 2, "needs data"),
        (["--model", "net.py:build", "--input-shape", "3x16x16", "--importance", "l3"], 2, "l3"),
        (["--model", "net.py:build", "--input-shape", "3x16x16", "--latency", "0.001us"], 2, "0.001us"),
        (["--model", "net.py:build", "--input-shape", "3x16x16", "--out", "net.py/run"], 1, "net.py/run"),
    ],
    ids=[
        "no such factory",
        "no shape",
        "cannot be exported",
        "other data",
        "no such weights",
        "no data",
        "no such criterion",
        "budget",
        "unwritable",
    ],
)
def test_bad_input_is_one_sentence(folder: Path, arguments: list[str], code: int, says: str) -> None:
    done = hwprune(
        "search", "--target", "arm", *(arguments if "--out" in arguments else [*arguments, "--out", "bad"]), cwd=folder
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1 and says in errors[0]
    assert "Traceback" not in done.stderr and "defect" not in done.stderr
    assert not (folder / "bad").exists()


def test_a_budget_out_of_reach_says_what_is_reachable(folder: Path) -> None:
    done = hwprune(
        "search",
        "--target",
        "arm",
        "--model",
        "net.py:build",
        "--input-shape",
        "3x16x16",
        "--latency",
        "0.001us",
        "--out",
        "bad",
        cwd=folder,
    )
    assert "smallest allowed network takes" in done.stderr


@pytest.mark.parametrize(
    ("array", "says"),
    [(np.zeros((1, 1, 9, 9), np.float32), "(1, 1, 8, 8)"), (np.zeros((1, 1, 8, 8), complex), "float32")],
    ids=["shape", "type"],
)
def test_run_refuses_an_array_that_does_not_fit(run: dict, folder: Path, array: np.ndarray, says: str) -> None:
    np.save(folder / "bad.npy", array)
    done = hwprune("run", "run/artifact", "--input", "bad.npy", "--output", "never.npy", cwd=folder)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "never.npy").exists()


def test_an_altered_artifact_is_refused(run: dict, folder: Path) -> None:
    import shutil

    shutil.copytree(folder / "run" / "artifact", folder / "altered")
    with open(folder / "altered" / "weights.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    np.save(folder / "zero.npy", np.zeros((1, 1, 8, 8), np.float32))
    done = hwprune("run", "altered", "--input", "zero.npy", "--output", "never.npy", cwd=folder)
    assert done.returncode == 1 and "weights.safetensors is not what was compiled" in done.stderr


def test_ctrl_c_says_that_measurements_are_kept(folder: Path) -> None:
    command = [sys.executable, "-m", "hwprune", "search", "--target", "arm", "--out", "interrupted"]
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests are a background job, which does not
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "kept and will be reused" in err and "Traceback" not in err
