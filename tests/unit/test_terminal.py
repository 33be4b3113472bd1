"""Progress and tables."""

from pathlib import Path

import numpy as np
import pytest

from hwprune import terminal
from hwprune.arrays import load_npy, save_npy
from hwprune.cli_show import bench_table, dot_text, figure_text, inspect_tables, result_table
from hwprune.errors import HwpruneError, UsageError
from hwprune.plan import Figure
from hwprune.results import BenchRow, FrozenRow, GroupRow, InspectReport, ResultRow


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal.time, "monotonic", clock)
    return clock


def test_a_short_task_says_nothing(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    with terminal.Terminal().task("Counting", 3) as task:
        for _ in range(3):
            clock.now += 0.5
            task.advance()
    assert capsys.readouterr() == ("", "")


def test_a_long_task_without_a_terminal_says_how_far_it_is(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    with terminal.Terminal().task("Measuring", 30) as task:
        for step in range(30):
            clock.now += 1.0
            task.note(f"kernel {step}")
            task.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Measuring 1/30 (kernel 1) ...",
        "Measuring 11/30 (kernel 11) ...",
        "Measuring 21/30 (kernel 21) ...",
        "Measuring: 30.0 s",
    ]


def text_of(table, capsys: pytest.CaptureFixture) -> str:
    terminal.Terminal().result(None, table)
    return capsys.readouterr().out


def test_the_result_table(capsys: pytest.CaptureFixture) -> None:
    rows = [
        ResultRow(
            "accuracy", "%", Figure(value=97.4, provenance="measured"), Figure(value=97.0, provenance="measured")
        ),
        ResultRow(
            "parameters", "count", Figure(value=77000, provenance="counted"), Figure(value=30800, provenance="counted")
        ),
        ResultRow(
            "latency", "us", Figure(value=100.0, low=98.0, high=103.0, provenance="measured"), None, "cannot run here"
        ),
    ]
    text = text_of(result_table(rows), capsys)
    for part in (
        "97.40 %",
        "77,000",
        "0.40x",
        "100 us (98 us to 103 us)",
        "unknown",
        "cannot run here",
        "measured",
        "counted",
    ):
        assert part in text


def test_the_bench_table(capsys: pytest.CaptureFixture) -> None:
    text = text_of(bench_table([BenchRow("pruned", 1500.0, 1400.0, 1700.0, "measured", 0.5)]), capsys)
    assert "1.5 ms" in text and "1.4 ms to 1.7 ms" in text and "0.50x" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234567.0, "count", "1,234,567"),
        (4190000.0, "bytes", "4.19 MB"),
        (850.0, "us", "850 us"),
        (0.5, "points", "0.5 points"),
    ],
)
def test_figures_carry_their_unit(value: float, unit: str, text: str) -> None:
    assert figure_text(Figure(value=value, provenance="measured"), unit) == text


REPORT = InspectReport(
    model="net",
    input_shape=(1, 3, 8, 8),
    parameters=100,
    prunable_parameters=50,
    groups=(GroupRow("conv1", 16, (("conv1.weight", 0),), (("fc.weight", 1),)),),
    frozen=(FrozenRow("fc.weight", 0, 10, 10, "network output", "it is returned", "net.py:3"),),
)


def test_inspect_shows_groups_and_reasons(capsys: pytest.CaptureFixture) -> None:
    terminal.Terminal().result(None, *inspect_tables(REPORT))
    text = capsys.readouterr().out
    assert "50.0%" in text and "conv1" in text and "network output" in text and "net.py:3" in text


def test_the_graphviz_text() -> None:
    text = dot_text(REPORT)
    assert '"conv1.weight[0]" -> "conv1";' in text and '"conv1" -> "fc.weight[1]";' in text and "lightgray" in text


def test_arrays_round_trip(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_npy(tmp_path / "y.npy", array)
    np.testing.assert_array_equal(load_npy(tmp_path / "y.npy"), array)


def test_bad_arrays_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with pytest.raises(UsageError, match="No such file"):
        load_npy(path)
    path.write_text("no array")
    with pytest.raises(UsageError, match="is not a .npy file"):
        load_npy(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="holds Python objects"):
        load_npy(path)
    np.save(path, np.zeros(1000))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UsageError, match="cannot read"):
        load_npy(path)


def test_an_unwritable_output_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HwpruneError, match="cannot write"):
        save_npy(tmp_path / "file" / "y.npy", np.zeros(1))
