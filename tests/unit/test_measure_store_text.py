"""Measurements as text: nothing is lost on the way, equal contents are equal texts, and what is wrong is refused with its line."""

from __future__ import annotations

import json
import random

import pytest
from typer.testing import CliRunner

from hwprune.cli import app
from hwprune.errors import DataError
from hwprune.measure.estimate import Latency
from hwprune.measure.store import Calibration, Context, Row, Store
from hwprune.measure.store_text import COLUMNS, FORMAT, from_text, to_text
from hwprune.workload import OpCall, TensorSpec, Workload

HERE = Context("board; 2 cores", 2, "kernels 1")
AT = "2026-01-02T03:04:05+00:00"


def workload(width: int = 8) -> Workload:
    spec = TensorSpec((1, 4, 4, width))
    return Workload((spec, TensorSpec((width,), "weight")), (OpCall.make("clip", 0, low=0.0, high=None), OpCall.make("add", 2, 1)), spec, macs=width)


def rows() -> list[Row]:
    found = [Row(workload(width), '{"rule": "x"}', HERE, Latency(width + 1 / 3, 0.1, 99.0, 9, width > 8), 3, measured_at=AT) for width in (8, 16, 24)]
    found.append(Row(workload(8), "config", HERE, None, 3, "two\nlines,\ta tab, a \\ and a \\t", measured_at=AT))
    found.append(Row(workload(8), "c", HERE, Latency(1.0, 1.0, 1.0, 0, False), 0, None, "simulated", "osaca 0.7", {"é": [1, None]}, AT))
    return found


CALIBRATIONS = [Calibration("reference_us", HERE, 0.1, AT), Calibration("a", HERE, 2.0, AT)]


def test_round_trip():
    taken, calibrations = from_text(to_text(rows(), CALIBRATIONS), "x.tsv")
    assert sorted(taken, key=lambda r: r.key) == sorted(rows(), key=lambda r: r.key)
    assert sorted(calibrations, key=lambda c: c.key) == sorted(CALIBRATIONS, key=lambda c: c.key)


def test_order_does_not_matter_and_a_change_is_one_line():
    shuffled = rows()
    random.Random(0).shuffle(shuffled)
    text = to_text(rows(), CALIBRATIONS)
    assert to_text(shuffled, reversed(CALIBRATIONS)) == text
    assert len(text.splitlines()) == 1 + 2 + 1 + 5
    more = to_text([*rows(), Row(workload(12), "c", HERE, Latency(1.0, 1.0, 1.0, 1, False), 3, measured_at=AT)], CALIBRATIONS)
    assert len(set(more.splitlines()) ^ set(text.splitlines())) == 1


def edited(**fields: str) -> str:
    """An export of one measurement with some of its fields replaced."""
    lines = to_text(rows()[:1]).splitlines()
    values = dict(zip(COLUMNS, lines[-1].split("\t"))) | fields
    return "\n".join([*lines[:-1], "\t".join(values.values())]) + "\n"


def test_an_edit_that_is_none_is_taken():
    assert from_text(edited(), "x.tsv")[0] == rows()[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: this is no export"),
        (to_text(rows()).replace(f"format {FORMAT}", "format 99"), "line 1: the format is 99, this hwprune reads 1"),
        (to_text(rows())[:-1], "the last line is not complete"),
        (to_text(rows())[: len(to_text(rows())) // 2], "the last line is not complete"),
        (to_text([]).splitlines()[0] + "\n", "line of column names is missing"),
        (edited(latency_us="fast"), "line 3: `latency_us` = 'fast' is out of range or no number"),
        (edited(latency_us="nan"), "`latency_us` = 'nan'"),
        (edited(latency_us="-1.0"), "`latency_us` = '-1.0'"),
        (edited(high_us="0.5"), r"`low_us <= latency_us <= high_us` must hold, but got \(0.1, 8.33"),
        (edited(rounds="0"), "`rounds` = '0'"),
        (edited(noisy="2"), "`noisy` = '2'"),
        (edited(threads="two"), "`threads` = 'two'"),
        (edited(device=""), "`device` is empty"),
        (edited(provenance="guessed"), "`provenance` must be measured or simulated, but got 'guessed'"),
        (edited(workload="{"), "`workload` is no JSON object"),
        (edited(workload="{}"), "line 3: `workload` = {} is not written as hwprune writes it"),
        (edited(workload='{"inputs": 1, "ops": [], "output": [], "macs": 0}'), "is not written as hwprune writes it"),
        (edited(workload=json.dumps(workload().to_json() | {"more": 1})), "`workload` = .* is not written as hwprune writes it"),
        (edited(details="[]"), "`details` is no JSON object"),
        (edited(measured_at="yesterday"), "yesterday"),
        (edited(measured_at="2026-01-01T00:00:00"), "no time zone"),
        (edited(failure="x\ty"), "expected 16 fields, but got 17"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(text, message):
    with pytest.raises(DataError, match=f"^x.tsv, line .*{message}.*; nothing of it was taken$|^x.tsv, {message}.*"):
        from_text(text, "x.tsv")


def hwprune(*arguments: str):
    return CliRunner().invoke(app, ["store", *map(str, arguments)])


def test_commands_carry_a_store_to_another(tmp_path):
    first = Store(tmp_path / "a.sqlite")
    first.add(rows(), CALIBRATIONS)
    first.close()
    assert hwprune("export", tmp_path / "x.tsv", "--store", tmp_path / "a.sqlite").exit_code == 0
    taken = hwprune("import", tmp_path / "x.tsv", "--store", tmp_path / "b.sqlite", "--json")
    assert json.loads(taken.stdout) == {"file": str(tmp_path / "x.tsv"), "taken": 7, "known": 0}
    again = hwprune("import", tmp_path / "x.tsv", "--store", tmp_path / "b.sqlite", "--json")
    assert json.loads(again.stdout)["known"] == 7
    assert Store(tmp_path / "a.sqlite").rows() == Store(tmp_path / "b.sqlite").rows()
    told = json.loads(hwprune("info", "--store", tmp_path / "b.sqlite", "--json").stdout)
    assert [(c["provenance"], c["kernels"], c["failures"]) for c in told["contents"]] == [("measured", 3, 1), ("simulated", 1, 0)]


def test_export_of_the_best(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    store.add([*rows(), Row(workload(8), "slower", HERE, Latency(90.0, 90.0, 90.0, 1, False), 3)])
    store.close()
    assert hwprune("export", tmp_path / "x.tsv", "--best", "--store", tmp_path / "a.sqlite").exit_code == 0
    best, _ = from_text((tmp_path / "x.tsv").read_text(), "x.tsv")
    assert sorted((r.config, r.provenance) for r in best) == [("c", "simulated"), *[('{"rule": "x"}', "measured")] * 3]


def test_export_for_a_target(tmp_path):
    from hwprune.costing import load_target
    from hwprune.measure.device import software

    profile = load_target("rpi4")
    store = Store(tmp_path / "a.sqlite")
    mine = [Row(workload(), "a", Context("board", 4, software(profile, spread)), Latency(1.0, 1.0, 1.0, 1, False), 3) for spread in (0, 1 << 24)]
    store.add([*rows(), *mine, Row(workload(), "a", Context("board", 4, software(load_target("rpi5"))), Latency(1.0, 1.0, 1.0, 1, False), 3)])
    store.close()
    assert hwprune("export", tmp_path / "x.tsv", "--target", "rpi4", "--store", tmp_path / "a.sqlite").exit_code == 0
    assert {r.key for r in from_text((tmp_path / "x.tsv").read_text(), "x.tsv")[0]} == {r.key for r in mine}


def test_import_of_a_file_that_is_none(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"\xff\xfe")
    result = hwprune("import", tmp_path / "x.tsv", "--store", tmp_path / "a.sqlite")
    assert result.exit_code == 2 and "is no text" in result.stderr
    assert hwprune("import", tmp_path / "none.tsv", "--store", tmp_path / "a.sqlite").exit_code == 2
