"""Models that keep something from one call to the next; each test gives them another forward."""

from __future__ import annotations

import collections
import contextlib
import logging
import random

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    """Keeps a bit of everything; each test gives it another forward."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.keeper = Keeper()
        self.branches = Branches()
        self.reads = Reads()
        self.stack = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.register_buffer("last", torch.zeros(4))
        self.plain = torch.zeros(4)
        self.cache = {}
        self.nested = {"inner": {}}
        self.helper = Helper()
        self.log = []
        self.count = 0
        self.pair = None
        self.found = {}
        self.sizes = (4, [4])
        self.steps = [0.5, 2.0]
        self.tally = collections.Counter()
        self.seen = set()
        self.slotted = Slotted()
        self.array = np.ones(2)
        self.logger = logging.getLogger(__name__)
        self.dice = random.Random(0)
        self.draws = np.random.default_rng(0)

    def step(self):
        """Count, out of sight of the forward."""
        self.count += 1

    @contextlib.contextmanager
    def counted(self):
        """Count for a while."""
        self.count = 1
        yield
        self.count = 0

    @property
    def factor(self):
        """What was counted."""
        return self.count + 1


class Helper:
    """Keeps what it is given."""


class Slotted:
    """The same, with slots."""

    __slots__ = ("calls",)

    def __init__(self):
        self.calls = 0


class Keeper(nn.Module):
    """Counts in a buffer, returns it, and cannot be looked into."""

    factor = 1

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x):
        try:
            self.calls.add_(x[0] * self.factor)
        except IndexError:
            return x
        return self.calls


class Branches(nn.Module):
    """Looks at values."""

    factor = 1

    def forward(self, x):
        return x * self.factor if x.sum() > 0 else x + self.factor


class Reads(nn.Module):
    """Reads what others put there."""

    def __init__(self):
        super().__init__()
        self.given = 0
        self.log = []

    def forward(self, x):
        return (x + self.given) * (1 + len(self.log))


def net(function):
    torch.manual_seed(0)
    return type("Stateful", (Net,), {"forward": function})()


def counts(self, x):
    self.count += 1
    return self.lin(x) * self.count
