"""Progress, tables and drawings."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwprune import terminal
from hwprune.arrays import load_npy, save_npy
from hwprune.cli_dot import dot_text, write_svg
from hwprune.cli_show import bench_table, figure_text, inspect_tables, result_table
from hwprune.errors import HwpruneError, UsageError
from hwprune.plan import Figure
from hwprune.results import AxisRow, BenchRow, FrozenRow, GroupRow, InspectReport, ResultRow


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
    groups=(
        GroupRow(
            "conv1",
            16,
            (AxisRow("conv1.weight", 0), AxisRow("conv1.bias", 0)),
            (AxisRow("fc.weight", 1, 9),),
            macs=90,
            macs_share=0.9,
            latency_us=Figure(value=5.0, provenance="measured"),
            latency_share=Figure(value=0.0001, provenance="analytic"),
        ),
        GroupRow("fc", 10, (AxisRow("fc.weight", 0),), (AxisRow("last.weight", 1),), macs=0, macs_share=0.0),
    ),
    frozen=(
        FrozenRow("fc.weight", 0, 2, 12, "user", "--freeze fc", "net.py:3"),
        FrozenRow("last.weight", 0, 4, 4, "network output", "it is returned", "net.py:4"),
        FrozenRow("last.bias", 0, 4, 4, "network output", "it is returned", "net.py:4"),
    ),
    target="native",
    kernels=3,
    kernels_measured=2,
    macs=100,
    latency_us=Figure(value=50.0, provenance="analytic", low=25.0, high=100.0),
)


def shown(capsys: pytest.CaptureFixture, report: InspectReport) -> list[str]:
    terminal.Terminal().result(None, *inspect_tables(report))
    return capsys.readouterr().out.splitlines()


def test_inspect_shows_groups_and_reasons(capsys: pytest.CaptureFixture) -> None:
    text = "\n".join(shown(capsys, REPORT))
    assert "50.0%" in text and "conv1" in text and "network output" in text and "net.py:3" in text


def test_inspect_shows_shares_with_their_provenance(capsys: pytest.CaptureFixture) -> None:
    lines = shown(capsys, REPORT)
    assert "target native: 100 MACs, 50 us (25 us to 100 us), analytic (2 of 3 kernels measured)" in lines
    [head] = [line for line in lines if line.lstrip().startswith("group ")]
    conv1, fc = [line.split() for line in lines if line.lstrip().startswith(("conv1 ", "fc "))]
    assert "MACs" in head and "latency, analytic" in head
    # too small for a digit is not nothing, and what is not known is no zero
    assert conv1[:6] == ["conv1", "16", "90.0", "%", "<0.1", "%"] and fc[:5] == ["fc", "10", "0.0", "%", "unknown"]


def test_inspect_says_what_is_missing_instead_of_showing_zeros(capsys: pytest.CaptureFixture) -> None:
    group = GroupRow("conv1", 16, (AxisRow("conv1.weight", 0),), (AxisRow("fc.weight", 1),))
    bare = InspectReport("net", (1, 3, 8, 8), 100, 50, (group,), (), target="native", missing="no kernel for odd")
    lines = shown(capsys, bare)
    assert "no shares of MACs and latency: no kernel for odd" in lines and not any(" %" in line for line in lines)
    counted = replace(bare, macs=7, groups=(replace(group, macs=7, macs_share=1.0),))
    lines = shown(capsys, counted)
    assert "no share of latency: no kernel for odd" in lines and any("100.0 %" in line for line in lines)


def test_inspect_of_hundreds_of_groups_is_one_line_a_group(capsys: pytest.CaptureFixture) -> None:
    groups = tuple(replace(REPORT.groups[0], id=f"conv{i}") for i in range(500))
    rows = [line.split()[0] for line in shown(capsys, replace(REPORT, groups=groups, frozen=())) if "90.0 %" in line]
    assert rows == [group.id for group in groups]


def test_the_graphviz_text() -> None:
    text = dot_text(REPORT)
    assert '"conv1" [shape=ellipse' in text and 'label="conv1 (16)"' in text
    assert '"conv1.weight[0]" [shape=box, label="conv1\\nweight[0], bias[0]"];' in text  # one box, as they go together
    assert text.count('-> "conv1";') == 1 and '"conv1" -> "fc.weight[1]" [label="&times;9"];' in text
    assert '"fc" -> "last.weight[1]";' in text  # one position a unit goes without saying
    assert 'style="filled,dashed"' in text and 'label="fc\\nweight[0]\\n2 of 12: user"' in text
    assert 'label="last\\nweight[0], bias[0]\\nnetwork output"' in text
    assert '{ rank=same; "conv1" -> "fc" [style=invis]; }' in text  # from top to bottom as in the graph
    text.encode("ascii")


def test_graphviz_draws_every_box_and_group(tmp_path: Path) -> None:
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    write_svg(REPORT, tmp_path / "net.svg")
    drawn = (tmp_path / "net.svg").read_text(encoding="utf-8")
    assert drawn.count('class="node"') == 2 + 5
    height = [float(re.search(rf' y="([-.0-9]+)"[^>]*>{name} \(', drawn)[1]) for name in ("conv1", "fc")]
    assert height[0] < height[1]


def test_without_graphviz_svg_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="install the package graphviz"):
        write_svg(REPORT, tmp_path / "net.svg")


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
