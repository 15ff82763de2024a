"""Listing all node names, beside one bare trace of the same model."""

from __future__ import annotations

from functools import partial

import pytest

from featuretap import NodeNames, get_graph_node_names

from .models import CLASSIFIERS, MODES_DIFFER, ROUNDS, chain, classifier
from .peers import bare_trace, torchvision_names
from .timing import Benchmark, Peer, compare

ONE_TRACE, TWO_TRACES, FOURFOLD = 1.3, 2.5, 4.4
TOPIC = "Listing"

listed = partial(get_graph_node_names, suppress_diff_warning=True, backend="fx")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_listing_a_classifier(benchmark: Benchmark, name: str) -> None:
    """Listing costs little more than the traces it needs: one, or two where the modes differ."""
    model = classifier(name)
    target = TWO_TRACES if name in MODES_DIFFER else ONE_TRACE
    peers = {
        "bare trace": Peer(partial(bare_trace, model), target),
        "torchvision": Peer(partial(torchvision_names, model), rounds=3),
    }
    traces = "two traces" if name in MODES_DIFFER else "one trace"
    compare(
        benchmark,
        TOPIC,
        f"{name}, {traces}",
        partial(listed, model),
        peers,
        rounds=ROUNDS.get(name, 25),
    )


@pytest.mark.parametrize("nodes", [120, 300, 1200, 3000])
def test_listing_a_long_chain(benchmark: Benchmark, quick: bool, nodes: int) -> None:
    """Listing thousands of nodes still costs little more than one trace."""
    nodes = min(nodes, 300) if quick else nodes
    model = chain(nodes)
    peers = {
        "bare trace": Peer(partial(bare_trace, model), ONE_TRACE),
        "torchvision": Peer(partial(torchvision_names, model), rounds=1 if nodes > 1200 else 5),
    }
    case = f"chain of {nodes:,} nodes, one trace"
    rounds = 9 if nodes > 1200 else 25
    compare(benchmark, TOPIC, case, partial(listed, model), peers, rounds=rounds)
    benchmark.extra_info["nodes"] = nodes
    if nodes <= 1200:
        assert listed(model) == torchvision_names(model)


def test_listing_is_linear_in_the_number_of_nodes(benchmark: Benchmark, quick: bool) -> None:
    """Four times the nodes take about four times as long."""
    short, long = (300, 1200) if quick else (3000, 12_000)
    compare(
        benchmark,
        TOPIC,
        f"chain of {long:,} nodes",
        partial(listed, chain(long)),
        {
            f"{short:,} nodes": Peer(partial(listed, chain(short)), FOURFOLD),
            "bare trace": Peer(partial(bare_trace, chain(long))),
        },
        rounds=7,
        warmup=1,
    )
    benchmark.extra_info["nodes"] = long
    names = listed(chain(long))
    assert isinstance(names, NodeNames)
    assert len(names) == long + 1
