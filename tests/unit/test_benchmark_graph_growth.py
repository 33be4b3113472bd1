"""The networks of the growth benchmark have the sizes that they are asked for."""

import pytest

from benchmarks.graph_growth import FAMILIES, HEADER, measure


@pytest.mark.parametrize("family", FAMILIES)
def test_network_has_about_the_nodes_asked_for(family):
    row = dict(zip(HEADER, measure(family, 150)))
    assert abs(row["nodes"] - 150) <= 15
    assert row["groups"] > 5 and float(row["analysis s"]) < 5
