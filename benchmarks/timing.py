"""Interleaved timing: each round runs us and every peer once, in a new random order.

A machine that slows down slows all of them down, and none profits from what another left in the
caches. Ours is timed by pytest-benchmark itself, the peers between its rounds and with the timer
that it was told to use: where other programs run beside, ``--benchmark-timer=time.thread_time``
counts our own thread alone. The garbage collector runs between the calls and never during one.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

# pytest-benchmark's fixture, whose methods carry no types.
Benchmark = Any


@dataclass(frozen=True)
class Peer:
    """Something that we are measured beside.

    Attributes:
        call: what is timed.
        target: how many times its time ours may take at most; ``None`` if that is only shown.
        rounds: in how many rounds it takes part, where all would take too long.
        own_clock: whether ``call`` returns the seconds that count, for not all of it does.

    """

    call: Callable[[], object]
    target: float | None = None
    rounds: int | None = None
    own_clock: bool = False


def compare(
    benchmark: Benchmark,
    topic: str,
    case: str,
    ours: Callable[[], object],
    peers: Mapping[str, Peer],
    *,
    rounds: int,
    calls: int = 1,
    warmup: int = 2,
    device: str = "cpu",
) -> None:
    """Time ``ours`` and ``peers`` in turns, and leave the summary in ``benchmark.extra_info``.

    Args:
        benchmark: the fixture of pytest-benchmark.
        topic: the table that the case belongs to.
        case: what the table calls it.
        ours: what is timed.
        peers: what it is timed beside, the most important first.
        rounds: how often each takes its turn.
        calls: how many calls make one turn, where one is so short that it would run from cold
            caches; pytest-benchmark's own table shows the time of all, the report that of one.
        warmup: untimed turns at the beginning.
        device: where the work is done.

    """
    rounds, calls, warmup = (1, 1, 0) if benchmark.disabled else (rounds, calls, warmup)
    finish = torch.cuda.synchronize if device.startswith("cuda") else None
    timed = _turn(ours, calls, finish)
    others = {
        name: peer if peer.own_clock else replace(peer, call=_turn(peer.call, calls, finish))
        for name, peer in peers.items()
    }
    for _ in range(warmup):
        for call in (timed, *(peer.call for peer in others.values() if peer.rounds is None)):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in others}
    turns = _turns(others, seconds, rounds, benchmark._timer)
    with _no_garbage_collection():
        _run(benchmark, timed, turns, rounds)
    if not benchmark.disabled:
        targets = {name: peer.target for name, peer in peers.items()}
        mine = [turn / calls for turn in benchmark.stats.stats.data]
        theirs = {
            name: [turn / (1 if others[name].own_clock else calls) for turn in times]
            for name, times in seconds.items()
        }
        note(benchmark, topic, case, mine, theirs, targets)


def note(
    benchmark: Benchmark,
    topic: str,
    case: str,
    ours: Sequence[float],
    peers: Mapping[str, Sequence[float]],
    targets: Mapping[str, float | None],
    unit: str = "s",
) -> None:
    """Leave the summary of a case in ``benchmark.extra_info``, where ``report.py`` finds it."""
    benchmark.group = topic
    benchmark.extra_info.update(
        topic=topic,
        case=case,
        unit=unit,
        median=statistics.median(ours),
        rounds=len(ours),
        peers=[
            {"name": name, "target": targets.get(name), **summary(ours, theirs)}
            for name, theirs in peers.items()
        ],
    )


def summary(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return the ratio of the medians, and the quartiles of the ratios within one round.

    A peer may have taken part in the first rounds only; then ours count in these only as well.
    """
    ours = ours[: len(theirs)]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 2 else None
    median = statistics.median(theirs)
    return {
        "median": median,
        "ratio": statistics.median(ours) / median,
        "quartiles": quartiles,
    }


def _turn(
    call: Callable[[], object], calls: int, finish: Callable[[], object] | None
) -> Callable[[], object]:
    """Make one turn of ``calls`` calls, which ends when the device has done the work."""
    if calls == 1 and finish is None:
        return call

    def turn() -> object:
        result = None
        for _ in range(calls):
            result = call()
        if finish is not None:
            finish()
        return result

    return turn


def _turns(
    peers: Mapping[str, Peer],
    seconds: Mapping[str, list[float]],
    rounds: int,
    timer: Callable[[], float],
) -> Iterator[None]:
    """Time the peers; pause where it is our turn."""
    shuffler = random.Random(0)
    for number in range(rounds):
        order: list[str | None] = [None]
        order += [name for name, peer in peers.items() if number < (peer.rounds or rounds)]
        shuffler.shuffle(order)
        for name in order:
            gc.collect()
            if name is None:
                yield
                continue
            peer = peers[name]
            start = timer()
            # Bound to a name, so that what it frees is freed after the clock has stopped.
            result: Any = peer.call()
            passed = timer() - start
            seconds[name].append(result if peer.own_clock else passed)
            del result


def _run(
    benchmark: Benchmark, timed: Callable[[], object], turns: Iterator[None], rounds: int
) -> None:
    """Let pytest-benchmark time ours, the peers between its rounds, and those behind the last."""
    benchmark.pedantic(timed, setup=lambda: next(turns, None), rounds=rounds)
    for _ in turns:
        pass


# CPython since 3.11 keeps the frames of Python functions in chunks of 16 KiB: it maps a new one for a
# call that does not fit into the last, and unmaps it on return. A loop whose calls cross that edge
# pays 7 us for each, and where the edge lies is chance: in pytest, listing googlenet crossed it 5,000
# times and took twice as long. This frame asks for more than 512 KiB, so its chunk is of 1 MiB, and
# the rest of it holds whatever is called from here.
_run.__code__ = _run.__code__.replace(co_stacksize=1 << 16)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is here already need not be looked at between the calls
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
