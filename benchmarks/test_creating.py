"""Creating an extractor of three nodes (early, middle, late), beside one bare trace."""

from __future__ import annotations

from functools import partial

import pytest

from featuretap import create_feature_extractor

from .models import CLASSIFIERS, MODES_DIFFER, ROUNDS, chain, chain_nodes, classifier
from .peers import bare_trace, torchvision_extractor
from .timing import Benchmark, Peer, compare

ONE_TRACE, TWO_TRACES, FOURFOLD = 2.0, 3.5, 4.4
TOPIC = "Creating"

created = partial(create_feature_extractor, backend="fx")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_creating_for_a_classifier(benchmark: Benchmark, name: str) -> None:
    """Creating costs the traces it needs and about as much again for the rest."""
    model, nodes = classifier(name), CLASSIFIERS[name]
    target = TWO_TRACES if name in MODES_DIFFER else ONE_TRACE
    peers = {
        "bare trace": Peer(partial(bare_trace, model), target),
        "torchvision": Peer(partial(torchvision_extractor, model, nodes), rounds=3),
    }
    traces = "two traces" if name in MODES_DIFFER else "one trace"
    ours = partial(created, model, list(nodes))
    compare(benchmark, TOPIC, f"{name}, {traces}", ours, peers, rounds=ROUNDS.get(name, 25))


def test_creating_for_a_long_chain(benchmark: Benchmark, quick: bool) -> None:
    """Creating from thousands of nodes still costs about two traces."""
    count = 300 if quick else 3000
    model, nodes = chain(count), chain_nodes(count)
    peers = {
        "bare trace": Peer(partial(bare_trace, model), ONE_TRACE),
        "torchvision": Peer(partial(torchvision_extractor, model, nodes), rounds=1),
    }
    ours = partial(created, model, list(nodes))
    case = f"chain of {count:,} nodes, one trace"
    compare(benchmark, TOPIC, case, ours, peers, rounds=9)


def test_creating_is_linear_in_the_number_of_nodes(benchmark: Benchmark, quick: bool) -> None:
    """Four times the nodes take about four times as long."""
    short, long = (300, 1200) if quick else (3000, 12_000)
    compare(
        benchmark,
        TOPIC,
        f"chain of {long:,} nodes",
        partial(created, chain(long), list(chain_nodes(long))),
        {
            f"{short:,} nodes": Peer(
                partial(created, chain(short), list(chain_nodes(short))), FOURFOLD
            ),
            "bare trace": Peer(partial(bare_trace, chain(long))),
        },
        rounds=7,
        warmup=1,
    )
