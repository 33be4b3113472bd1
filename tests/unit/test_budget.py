import pytest

from hwprune.budget import format_bytes, format_us, parse_bytes, parse_latency, parse_share
from hwprune.errors import UsageError


@pytest.mark.parametrize(
    ("text", "dense_us", "limit_us"),
    [
        ("0.5x", 200.0, 100.0),
        ("50%", 200.0, 100.0),
        ("3.2ms", 1.0, 3200.0),
        ("850us", 1.0, 850.0),
        (" 1.5 s ", 1.0, 1.5e6),
        ("1x", 7.0, 7.0),
    ],
)
def test_latency(text, dense_us, limit_us):
    assert parse_latency(text).resolve(dense_us) == pytest.approx(limit_us)


@pytest.mark.parametrize(
    ("text", "limit"),
    [("4MB", 4e6), ("512KiB", 524288), ("512kib", 524288), ("100 B", 100), ("0.25x", 25.0), ("1GiB", 2**30)],
)
def test_bytes(text, limit):
    assert parse_bytes(text).resolve(100.0) == pytest.approx(limit)


@pytest.mark.parametrize(
    "text", ["", "3", "0.5", "x", "-1ms", "0ms", "0x", "1.5x", "120%", "3 parsecs", "1e999ms", "nanms", "4MB"]
)
def test_refused_latency_quotes_the_text_and_says_what_to_write(text):
    with pytest.raises(UsageError) as err:
        parse_latency(text)
    assert repr(text) in str(err.value) and "latency" in str(err.value)


def test_refused_bytes_name_the_budget():
    with pytest.raises(UsageError, match="size budget '3ms'.*512KiB"):
        parse_bytes("3ms", "size")


def test_formats():
    assert [format_us(x) for x in (0.5, 850, 3210, 2.5e6)] == ["0.5 us", "850 us", "3.21 ms", "2.5 s"]
    assert [format_bytes(x) for x in (12, 1500, 4.19e6, 3e9)] == ["12 B", "1.5 kB", "4.19 MB", "3 GB"]


def test_shares():
    assert parse_share("10%", "--within") == pytest.approx(0.1) == parse_share("0.1", "--within")


@pytest.mark.parametrize("text", ["", "x", "0", "1", "120%", "-0.1", "0.1x"])
def test_refused_share_names_its_option(text):
    with pytest.raises(UsageError, match="--within.*10% or 0.1"):
        parse_share(text, "--within")
