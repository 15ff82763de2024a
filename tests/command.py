"""The command line under test: a file of models, and what its answers must look like."""

from __future__ import annotations

from collections.abc import Callable

NETWORK = '''
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.lin = nn.Linear(width, width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.relu(self.lin(x)) + x)


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x) if x.sum() > 0 else -self.lin(x)


class Net(nn.Module):
    def __init__(self, width=4, depth=2):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(width))
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.stubborn = Stubborn()
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        x = self.blocks(x + self.shift)
        if self.training:
            x = F.dropout(x)
        x = self.stubborn(x)
        y, _ = self.attn(x, x, x)
        return self.attn.out_proj(y).argmax(-1), x.shape[1]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 4)

    def forward(self, ids, scale):
        return self.table(ids) * scale


class Loose(nn.Module):
    """Does not run on the meta device: the tensor is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.weight = [torch.ones(4)]

    def forward(self, x):
        return x * self.weight[0]


class Swap(nn.Module):
    """In train mode ``relu_1`` is a function, in eval mode it is the module's second call."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        if self.training:
            return F.relu(x)
        return self.relu(self.relu(x))


class EvalOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return x if self.training and x.sum() > 0 else self.lin(x)


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Unlucky(nn.Module):
    def __init__(self):
        raise RuntimeError("no\\nluck")


class Named(nn.Module):
    def forward(self, file):
        device = file.device
        return (file + 1).to(device), 0.1


class Sparse(nn.Module):
    def forward(self, x):
        return x.relu().to_sparse().to_dense()


def make(what="Block", weights=None):
    return globals()[what]()


def number():
    return 3


ready = Block()
'''

Answer = tuple[int, str, str]
Run = Callable[..., Answer]


def succeeds(answer: Answer) -> list[str]:
    """Check that ``answer`` says nothing on stderr and has exit code 0; return its lines."""
    code, out, err = answer
    assert (code, err) == (0, "")
    return out.splitlines()


def fails(answer: Answer) -> str:
    """Check that ``answer`` is one line on stderr and exit code 2; return what it says."""
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("featuretap: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("featuretap: error: ")


def line_with(lines: list[str], *words: str) -> str:
    """Return the one line whose words, guides aside, begin with ``words``."""
    (found,) = (line for line in lines if tuple(line.strip("│├└─ ").split())[: len(words)] == words)
    return found
