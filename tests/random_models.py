"""Random models, as Python source.

Variables have a kind, by shape: ``F`` full (batch, 4), ``H`` half (batch, 2), ``T`` transposed
(4, batch), ``V`` flat (4 * batch), ``R`` row (4), ``B`` and ``C`` the numbers batch and 4. In the
templates a capital stands for a variable that is there, a small letter for one that is assigned.
What a model computes says :mod:`interpreter`.
"""

from __future__ import annotations

import itertools
import linecache
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from support import drawn

__all__ = ["Program", "programs"]

TEMPLATES = """
$f = $F + $F | $f = $F - $F | $f = $F * $F | $f = $F / 2 | $f = 1 - $F | $f = -$F | $f = $F ** 2
$f = $F @ self.weight | $f = $F * self.scale | $f = $F + self.buf * 2 | $f = $F + $R | $f = $R * $F
$f = torch.add($F, $F) | $f = torch.sigmoid($F) | $f = F.relu($F) | $f = torch.add($F, 1, alpha=2)
$f = torch.cat([$F[:, :2], $F[:, 2:]], 1) | $f = torch.cat($F.chunk(2, 1), 1) | $f = $F.add($F)
$f = torch.stack([$F, $F])[0] | $f = torch.where($F > 0, $F, $F) | $f = $F.mul($F) | $f = $F.div(2)
$f = $F.clone() | $f = $F.detach() | $f = $F.contiguous() | $f = $F.float() | $f = $F.softmax(1)
$f = $F.to($F.dtype) | $f = $F.type_as($F) | $f = $F.view($F.shape) | $f = $F.view($F.shape[0], 4)
$f = $F.reshape($F.size(0), -1) | $f = $F.reshape(-1, 4) | $f = $F.view_as($F) | $f = $F[:]
$f = $F if self.training else $F | $f = $F | $f = ($F > 0) * $F | $f = ($F + 1) * 2 - $F
$f = F.linear($F, self.lin.weight, self.lin.bias) | $f = $F.max(1, True).values + $F
$f = $F.max(1, keepdim=True)[0] * $F | $f = $F.expand(2, -1, -1)[1] | $f = $F[:, [3, 2, 1, 0]]
$f = self.lin($F) | $f = self.add_1($F) | $f = self.relu($F) | $f = self.mul($F) | $f = self.norm($F)
$f = self.drop($F) | $f = self.sub($F) | $f = self.seq($F) | $f = self.twin($F) | $f = self.dropout($F)
$f = self.lin(self.mul($F)) + self.add_1($F) | $f = self.lin(self.weight).mean() + $F
$f = $F + torch.rand(4) | $f = $F * torch.rand_like($F) | $f = F.dropout($F, training=self.training)
$f = $F + torch.randn($F.shape) | $f = torch.bernoulli($F.sigmoid()) | $f = $F[:, torch.randperm(4)]
$f = $F + torch.zeros_like($F).normal_() | $f = F.dropout($F, 0.5, self.training) * $F
$f = torch.cat([$H, $H], 1) | $f = $V.view(-1, 4) | $f = $T.t() | $f = $T.T | $f = ($T + 1).t()
$f = $F.view($B, $C) | $f = $F * $C | $f = $F * math.sqrt($C) | $f = $F[:$B] | $f = $F / ($C * 2)
$f = torch.zeros($B, $C) + $F | $f = $F.new_ones($B, $C) - $F
$f = $F.reshape($B, $C // 2, 2).sum(2, True)[:, 0] + $F
$F += $F | $F -= 1 | $F *= 2 | $F /= 2 | $F += $R | $F *= self.scale | $F **= 2 | $F += self.buf
$F.add_($F) | $F.mul_(2) | $F.relu_() | $F.zero_() | $F.copy_($F) | $F.sub_(1).mul_(2)
$f = $F.add_($F) | $f = F.relu($F, inplace=True) | F.relu($F, inplace=True) | torch.relu_($F)
$F[:, 0] = 0 | $F[0] = $R | $F[:, 1:3] += 1 | $F[0].mul_(2) | $F[:, :2] = $H | $F[$F > 0] = 0
$F[:, 1] = $F[:, 0] | $F[1] = self.scale | $F[0, 0] += 1 | $F[:, ::2] *= $H | $F[:] = $F + 1
torch.add($F, $F, out=$F) | torch.mul($F, 2, out=$F) | $f = torch.add($F, $F, out=$F)
torch.neg($F, out=torch.empty(0)) | $F.data.mul_(2) | $F.masked_fill_($F > 1, 0.5) | $F.mul_($F.size(1))
$F.detach().mul_(2) | $F.t()[0].add_(1) | self.relu($F) | self.dropout($F) | F.dropout($F, inplace=True)
$F.view(-1)[0] = 3 | $F.view(-1)[1:3] += 2 | $F.T.add_(1) | $F.unsqueeze(0).mul_(3)
$F.chunk(2, 1)[0].zero_()
$F + 1 | self.drop($F) | self.norm($F) | torch.rand(2) | F.dropout($F) | $F.sum() | self.lin($F)
$h = $F[:, :2] | $h = $F[:, 2:] | $h = $F.narrow(1, 0, 2) | $h, $h = $F.chunk(2, 1) | $h = $F[:, ::2]
$h, $h = $F.split(2, 1) | $h = $F.chunk(2, 1)[0] | $h = $F[:, :$C // 2] | $h = $H + $H | $h = $H * 2
$H += 1 | $H.mul_(2) | $H.relu_() | $H[0] = 1 | F.relu($H, inplace=True) | self.relu($H) | $H *= $H
$H.copy_($H) | $H.zero_() | $H[:, 0] += 1 | $h = $H | $h = $H.detach() | $h = torch.add($H, 1, out=$H)
$v = $F.view(-1) | $v = $F.flatten() | $v = $F.reshape(-1) | $V += 1 | $V[0] = 0 | $V[1:3].mul_(3)
$v = $V.sigmoid() | torch.neg($V, out=$V) | $v = $V[:] | $V *= $V | $V.add_($V)
$t = $F.t() | $t = $F.T | $T += 1 | $T[0] = 5 | $T.sigmoid_() | $t = $F.transpose(0, 1) | $T[1] *= 2
$r = torch.rand(4) | $r = torch.ones(4) | $r = self.buf * 2 | $r = self.buf | $r = self.scale
$r = torch.tensor([1.0, 2.0, 3.0, 4.0]) | $r = $R + 1 | $r = $R.clone() | $R += 1 | $R.mul_(2)
$R[0] = 0 | $R[1:] += 1 | $r = $F.mean(0) | $r = $F[0] | $R.add_($F[0]) | $R[0] = $F[0, 0]
torch.add($R, 1, out=$R) | $r = self.scale * 2 | $r = $R.view(2, 2).t().reshape(-1) | $r = $R[:]
$r = torch.cat([$R[:2], $R[2:]]) | $R[:2].add_($R[2:]) | $r = torch.ones($C) | $r = -$R
self.buf.mul_(0.9) | self.buf.add_($F.mean(0).detach()) | self.buf += 1 | self.buf[0] += 1
self.buf.copy_($F[0]) | self.count += 1 | $f = $F * self.count | $f = $F + self.count.sqrt()
$b, $c = $F.shape | $b = $F.size(0) | $c = $F.size(1) | $c = $F.shape[1] | $c = $C * 2 // 2
$c = $F.shape[-1]
$f = self.block($F) | $f = self.block_1($F) | $f, $f = self.pair($F, $F) | $f = self.pair($F, y=$F)[0]
self.block($F) | $f = self.block(x=$F) | $f = self.block.lin($F) | $f = self.block($F) + self.block($F)
"""
STATEMENTS = [text.strip() for line in TEMPLATES.split("\n") for text in line.split(" | ") if text]
MEMBERS = {
    "lin": "nn.Linear(4, 4)",
    "twin": "self.lin",
    "add_1": "nn.Linear(4, 4)",
    "relu": "nn.ReLU(inplace=True)",
    "mul": "nn.ReLU()",
    "norm": "nn.BatchNorm1d(4)",
    "drop": "nn.Dropout(0.5)",
    "dropout": "nn.Dropout(0.5, inplace=True)",
    "sub": "nn.Identity()",
    "seq": "nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))",
    "scale": "nn.Parameter(torch.randn(4))",
    "weight": "nn.Parameter(torch.randn(4, 4))",
    "buf": "torch.rand(4)",
    "count": "torch.ones(())",
    "block": "Block()",
    "block_1": "Block()",
    "pair": "Pair()",
}
CLASSES = {  # class -> its arguments, what it returns, members it has not
    "Block": ("x", ["{0}"], "block block_1 pair"),
    "Pair": ("x, y", ["({0}, {1})"], "pair"),
    "Net": ("x, y", ["{0}", "({0}, {1})", '{{"a": {0}, "b": [{1}]}}'], ""),
}
# What is written first where a template needs a kind of which there is no variable.
MADE_OF = {
    "H": ["$h = $F[:, :2]", "$h, $h = $F.chunk(2, 1)"],
    "V": ["$v = $F.view(-1)", "$v = $F.reshape(-1)"],
    "T": ["$t = $F.t()", "$t = $F.T"],
    "R": ["$r = torch.ones(4)", "$r = self.buf", "$r = self.scale", "$r = $F[0]"],
    "B": ["$b, $c = $F.shape", "$b = $F.size(0)"],
    "C": ["$b, $c = $F.shape", "$c = $F.size(1)"],
}
COMPOUND = ["if self.training:", "with torch.no_grad():", "for _ in range(2):"]


@dataclass(frozen=True, repr=False)
class Program:
    """The source of a model ``Net``, with what else makes it one model."""

    source: str
    requires_grad: bool

    def __repr__(self) -> str:
        return f"Program(requires_grad={self.requires_grad}):\n\n{self.source}"

    def build(self) -> nn.Module:
        """Make the model, the same each time."""
        name = f"<random model {hash(self.source)}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(True), name)
        scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "math": math, "__name__": "net"}
        exec(compile(self.source, name, "exec"), scope)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model: nn.Module = scope["Net"]().requires_grad_(self.requires_grad)
        return model

    @staticmethod
    def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the arguments of a call; another batch has other numbers."""
        return drawn(batch, 4, seed=batch), drawn(batch, 4, seed=-batch).sigmoid()


class _Writer:
    """Writes the body of one forward; variables made in a block are gone after it."""

    def __init__(self, arguments: str, absent: str) -> None:
        self.variables: dict[str, list[str]] = {"F": arguments.split(", ")}
        self._absent = re.compile(rf"self\.({'|'.join(absent.split()) or '-'})\b")
        self._made = 0

    def block(self, statements: list[Any], indent: str) -> list[str]:
        outer = {kind: list(names) for kind, names in self.variables.items()}
        lines = [line for statement in statements for line in self._lines(statement, indent)]
        self.variables = outer
        return lines or [f"{indent}pass"]

    def body(self, statements: list[Any], indent: str) -> list[str]:
        return [line for statement in statements for line in self._lines(statement, indent)]

    def _lines(self, statement: Any, indent: str) -> Iterator[str]:
        head, *rest = statement
        if head in COMPOUND:
            body, other = (self.block(part, f"{indent}    ") for part in rest)
            yield from (f"{indent}{head}", *body)
            if head.startswith("if"):
                yield from (f"{indent}else:", *other)
        elif not self._absent.search(head):
            picks = itertools.cycle(rest[0])
            for kind in re.findall(r"\$([A-Z])", head):
                if not self.variables.get(kind):
                    made_of = MADE_OF[kind]
                    yield indent + self._fill(made_of[next(picks) % len(made_of)], picks)
            yield indent + self._fill(head, picks)

    def _fill(self, template: str, picks: Iterator[int]) -> str:
        line = re.sub(r"\$([A-Z])", lambda m: self.pick(m[1], next(picks)), template)
        return re.sub(r"\$([a-z])", lambda m: self._target(m[1], next(picks)), line)

    def pick(self, kind: str, pick: int) -> str:
        """Choose a variable, the last one first."""
        names = self.variables[kind]
        return names[-1 - pick % len(names)]

    def _target(self, letter: str, pick: int) -> str:
        names = self.variables.setdefault(letter.upper(), [])
        if names and pick % 3 == 1:
            name = self.pick(letter.upper(), pick // 3)
            names.remove(name)
        else:
            self._made += 1
            name = f"{letter}{self._made}"
        names.append(name)
        return name


_SIMPLE = st.tuples(st.sampled_from(STATEMENTS), st.tuples(*[st.integers(0, 5)] * 5))
_BODY = st.lists(_SIMPLE, max_size=3)
_STATEMENT = st.one_of(
    _SIMPLE, _SIMPLE, _SIMPLE, st.tuples(st.sampled_from(COMPOUND), _BODY, _BODY)
)
_PICKS = st.integers(0, 5)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Draw a model; whether it runs is for the caller to see."""
    bodies = {}
    for name, (arguments, returns, absent) in CLASSES.items():
        writer = _Writer(arguments, absent)
        least = draw(st.sampled_from([0, 2, 4] if absent else [0, 6, 12]))
        statements = draw(st.lists(_STATEMENT, min_size=least, max_size=least + 4))
        lines = writer.body(statements, " " * 8)
        values = [writer.pick("F", draw(_PICKS)) for _ in range(2)]
        value = draw(st.sampled_from(returns)).format(*values)
        bodies[name] = [f"    def forward(self, {arguments}):", *lines, f"        return {value}"]
    used = set(re.findall(r"\.(\w+)", "\n".join(itertools.chain(*bodies.values()))))
    used |= {"lin"} if "twin" in used else set()
    source = []
    for name, body in bodies.items():
        absent = CLASSES[name][2].split()
        made = [
            f'self.register_buffer("{key}", {made})'
            if made[:5] == "torch"
            else f"self.{key} = {made}"
            for key, made in MEMBERS.items()
            if key in used - {*absent}
        ]
        if name == "Net" or any(f"{name}()" in MEMBERS[key] for key in used & MEMBERS.keys()):
            head = ["    def __init__(self):", "        super().__init__()"]
            source += [f"class {name}(nn.Module):", *head]
            source += [*(f"        {line}" for line in made), "", *body, "", ""]
    return Program("\n".join(source).rstrip() + "\n", draw(st.booleans()))
