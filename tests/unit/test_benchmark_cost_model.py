"""The benchmark of predicted latencies goes on where it was stopped, and says plainly what does not hold."""

from benchmarks.cost_model import Journal, due, held
from hwprune.results import Accuracy


def test_journal_is_read_again_without_a_line_that_was_cut_off(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    for network in (0, 1):
        for number in (1, 0):
            journal.add(model="m", network=network, **{"pass": number}, latency_us=10.0 + number, control_us=50.0, at=0.0)
    with journal.path.open("a") as file:
        file.write('{"model": "m", "network": 1, "pa')
    again = Journal(journal.path)
    assert [r["latency_us"] for r in again.of("m", 1)] == [10.0, 11.0] and again.of("other", 1) == []
    again.add(model="m", network=2, **{"pass": 0}, latency_us=1.0, control_us=50.0, at=0.0)
    assert len(Journal(journal.path).rows) == 5


def test_what_was_timed_while_the_machine_was_disturbed_does_not_count(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    for number, control_us in enumerate((52.0, 70.0, 50.0)):
        journal.add(model="m", network=1, **{"pass": number}, latency_us=10.0 + number, control_us=control_us, at=0.0)
    journal.add(model="other", network=1, **{"pass": 0}, latency_us=10.0, control_us=1.0, at=0.0)
    assert [r["latency_us"] for r in journal.of("m", 1)] == [10.0, 12.0]


def test_a_network_is_timed_a_second_time_only_later(monkeypatch):
    monkeypatch.setattr("benchmarks.cost_model.time.time", lambda: 1000.0)
    assert due([], 0) and not due([], 1)
    assert due([{"at": 0.0}], 1) and not due([{"at": 999.0}], 1) and not due([{"at": 0.0}], 0)


def test_checks_name_what_does_not_hold():
    good = Accuracy(20, 0.02, 0.05, 0.0, 0.995, 0.01)
    assert [holds for *_, holds in held(good, good, 5.0)] == ["yes"] * 5
    bad = Accuracy(20, 0.06, 0.1, 0.05, 0.9, 0.03)  # 1.5 times the retest error are 4.5 %
    rows = {name: (bound, holds) for name, _, bound, holds in held(bad, bad, 25.0)}
    assert {holds for _, holds in rows.values()} == {"NO"} and rows["table, median error"][0] == "4.5%"
