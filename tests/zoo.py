"""Small nasty models, each with what its forward computes, written out by hand.

``reference(*args)`` returns node name -> the value at that moment, copied as it is computed. It
is plain code of its own, so that an extractor is never compared with itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from support import drawn


class ZooModel(nn.Module):
    """A model that knows what its own nodes must be."""

    shape: tuple[int, ...] = (2, 4)
    only_eval = False

    def example(self) -> tuple[Any, ...]:
        return (drawn(*self.shape, seed=7),)

    def reference(self, x: torch.Tensor) -> dict[str, Any]:
        raise NotImplementedError  # each model writes down its own


ZOO: dict[str, Callable[[], ZooModel]] = {}


def zoo(cls: type[ZooModel]) -> type[ZooModel]:
    ZOO[cls.__name__] = cls
    return cls


def linear(seed: int = 0, width: int = 4) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, width)


class WithoutForward(nn.Module):
    """Runs its layers where a test gives it a forward."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)
        self.out = nn.Linear(4, 2)
        self.table = {"rate": 1}

    def run(self, x):
        return self.out(self.norm(self.lin(x)))


@zoo
class NumberedModules(ZooModel):
    """Digits at the end of a module's name belong to the name (trap 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.conv_2, self.conv_3 = linear(1), linear(2), linear(3)

    def forward(self, x):
        return self.conv_3(self.conv_2(self.conv_1(x)))

    def reference(self, x):
        a = self.conv_1(x)
        b = self.conv_2(a)
        return {"x": x, "conv_1": a, "conv_2": b, "conv_3": self.conv_3(b)}


@zoo
class ArgumentLikeModule(ZooModel):
    """An argument called like a submodule must not take its name (trap 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = linear(1)

    def forward(self, embedding):
        return self.embedding(embedding)

    def reference(self, x):
        return {"embedding_1": x, "embedding": self.embedding(x)}


@zoo
class FunctionBeforeModule(ZooModel):
    """A function of the same name runs before the module (trap 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.lin = linear(1)

    def forward(self, x):
        x = F.relu(x)
        x = self.relu(self.lin(x))
        return self.relu(x + 1)

    def reference(self, x):
        a = F.relu(x)
        b = self.lin(a)
        c = F.relu(b)
        return {"relu_1": a, "lin": b, "relu": c, "add": c + 1, "relu_2": F.relu(c + 1)}


class Act(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(5)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.lin(x))


@zoo
class NestedScopes(ZooModel):
    """``stage`` and ``stage.1.act`` are one node under two names (trap 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(Act(), Act())

    def forward(self, x):
        return self.stage(x) * 2

    def reference(self, x):
        first = self.stage[0].lin(x)
        a = first.relu()
        second = self.stage[1].lin(a)
        b = second.relu()
        return {
            "stage.0.lin": first,
            "stage.0.act": a,
            "stage.0": a,
            "stage.1.lin": second,
            "stage.1.act": b,
            "stage.1": b,
            "stage": b,
            "mul": b * 2,
            "": b * 2,
        }


class SideBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = linear(1), linear(2)

    def forward(self, x):
        y = self.main(x)
        self.aux(x)
        return y


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(3)

    def forward(self, x):
        return self.lin(x), x * 2


class PassThrough(nn.Module):
    def forward(self, x):
        return x


@zoo
class ModuleOutputs(ZooModel):
    """A module's path is what it returned: not its last operation, also of a pass-through (trap 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.pair, self.skip = SideBranch(), Pair(), PassThrough()

    def forward(self, x):
        x = self.side(x)
        a, b = self.pair(x)
        return self.skip(a) + b

    def reference(self, x):
        y = self.side.main(x)
        a, b = self.pair.lin(y), y * 2
        return {
            "side": y,
            "side.aux": self.side.aux(x),
            "pair": (a, b),
            "pair.mul": b,
            "skip": a,
            "add": a + b,
        }


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(4)

    def encode(self, x):
        return self.lin(x) + 1

    def forward(self, x):
        return self.lin(x)


@zoo
class OtherMethod(ZooModel):
    """A submodule used by another method than its call (trap 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = Encoder()

    def forward(self, x):
        return self.enc.encode(x) * 3

    def reference(self, x):
        y = self.enc.lin(x)
        return {"enc.lin": y, "add": y + 1, "mul": (y + 1) * 3}


class Positional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, x):
        return x + self.pos_embedding


@zoo
class ParameterRead(ZooModel):
    """A parameter is called by its own path, once (trap 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Positional()

    def forward(self, x):
        return self.encoder(x)

    def reference(self, x):
        pos = self.encoder.pos_embedding
        return {"encoder.pos_embedding": pos, "encoder.add": x + pos, "encoder": x + pos}


@zoo
class ReusedModules(ZooModel):
    """A leaf and a container called twice: first call the path, then ``_1`` (trap 9, N4)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Act()
        self.tanh = nn.Tanh()

    def forward(self, x):
        x = self.tanh(self.block(x))
        return self.tanh(self.block(x))

    def reference(self, x):
        l1 = self.block.lin(x)
        a1 = l1.relu()
        t1 = a1.tanh()
        l2 = self.block.lin(t1)
        a2 = l2.relu()
        return {
            "block.lin": l1,
            "block.act": a1,
            "block": a1,
            "tanh": t1,
            "block.lin_1": l2,
            "block.act_1": a2,
            "block_1": a2,
            "tanh_1": a2.tanh(),
        }


@zoo
class SharedModule(ZooModel):
    """A module registered twice has its first path, and answers to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear(1)
        self.second = self.first

    def forward(self, x):
        return self.second(x) + 1

    def reference(self, x):
        return {"first": self.first(x), "second": self.first(x), "add": self.first(x) + 1}


@zoo
class InPlaceModule(ZooModel):
    """A later in-place module writes a captured value, also through a view (trap 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.lin(x)
        v = y.view(-1)
        z = y * 2
        self.relu(v)
        return y + z

    def reference(self, x):
        y = self.lin(x)
        z = y * 2
        r = y.relu()
        return {
            "lin": y,
            "view": y.reshape(-1),
            "mul": z,
            "relu": r.reshape(-1),
            "add": r + z,
        }


@zoo
class InPlaceStatements(ZooModel):
    """In-place statements whose result nobody uses (trap 17)."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.lin(x)
        y.mul_(2)
        F.relu(y, inplace=True)
        y[:, 0].zero_()
        y[:, 1] = 5
        torch.add(y, 1, out=y)
        self.act(y)
        y.data.mul_(3)
        return y - 1

    def reference(self, x):
        y = self.lin(x)
        a = y * 2
        b = a.relu()
        c = b.clone()
        c[:, 0] = 0
        d = c.clone()
        d[:, 1] = 5
        e = d + 1
        return {
            "lin": y,
            "mul_": a,
            "relu": b,
            "getitem": b[:, 0],
            "zero_": torch.zeros_like(b[:, 0]),
            "add": e,
            "act": e.relu(),
            "sub": e.relu() * 3 - 1,
        }

    def example(self):
        # ``out=`` refuses tensors that require gradients.
        self.requires_grad_(False)
        return super().example()


@zoo
class AugmentedAlias(ZooModel):
    """``x += y`` changes every name of the tensor (trap 18)."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        y = self.lin(x)
        alias = y
        y += 1
        y *= 2
        return alias - y / 2

    def reference(self, x):
        y = self.lin(x)
        b = (y + 1) * 2
        return {"lin": y, "add": y + 1, "mul": b, "truediv": b / 2, "sub": b - b / 2}


@zoo
class FrozenStatistics(ZooModel):
    """Arithmetic on buffers is no node, and is done on every call (trap 21, N1)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_var", torch.tensor([1.0, 4.0, 9.0, 16.0]))
        self.weight = nn.Parameter(torch.linspace(1, 2, 4))

    def forward(self, x):
        inverse = (self.running_var + 1e-5).rsqrt()
        return x * (self.weight * inverse)

    def reference(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return {"x": x, "weight": self.weight, "mul": scale, "mul_1": x * scale}


@zoo
class CountingBuffer(ZooModel):
    """A buffer that the forward moves: by the extractor's calls, never by its making (trap 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls

    def reference(self, x):
        return {"mul": x * (self.calls + 1)}


@zoo
class MadeInForward(ZooModel):
    """Constants and masks made in the forward; no node, and no new attribute (trap 21)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(4))  # says where what is made must live

    def forward(self, x):
        mask = torch.ones(4, device=self.like.device)
        mask[0] = 0
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0], device=self.like.device)
        return x * mask * scale

    def reference(self, x):
        a = x * torch.tensor([0.0, 1.0, 1.0, 1.0]).to(x)
        return {"mul": a, "mul_1": a * torch.tensor([1.0, 2.0, 3.0, 4.0]).to(x)}


class ViewMadeWithoutGradients(nn.Module):
    """Returns views that autograd lets nobody look at any more."""

    def forward(self, y):
        with torch.no_grad():
            view = y.view(-1)
        later = view[1:]
        y.mul_(2)
        return view, later


@zoo
class FoundAtRandom(ZooModel):
    """What random models found: ``**=``, a view made without gradients of what is written, sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(1)
        self.part = ViewMadeWithoutGradients()

    def forward(self, x):
        y = self.lin(x)
        self.part(y)
        y.add_(1)
        z = x - 1
        z **= 2
        return y.reshape(x.size(0), -1) + z

    def reference(self, x):
        y, z = self.lin(x), x - 1
        return {
            "lin": y,
            "part.view": y.view(-1),
            "part.getitem": y.view(-1)[1:],
            "part.mul_": y * 2,
            "part": (y.view(-1) * 2, y.view(-1)[1:] * 2),
            "add_": y * 2 + 1,
            "sub": z,
            "pow": z**2,
            "size": x.size(0),
            "reshape": y * 2 + 1,
            "add": y * 2 + 1 + z**2,
        }


@zoo
class Sizes(ZooModel):
    """Sizes are nodes of their own (N3)."""

    shape = (2, 3, 4)

    def forward(self, x):
        b, n = x.shape[0], x.size(1)
        return x.reshape(b, n * 4).flatten(0)

    def reference(self, x):
        y = x.reshape(2, 12)
        return {
            "getattr": x.shape,
            "getitem": 2,
            "size": 3,
            "mul": 12,
            "reshape": y,
            "flatten": y.flatten(),
        }


@zoo
class Attention(ZooModel):
    """MultiheadAttention and LSTM return tuples, as they are (trap 26)."""

    shape = (2, 3, 4)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
            self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        y, _ = self.attn(x, x, x)
        z, (h, _) = self.lstm(y)
        return z + h[0].unsqueeze(1)

    def reference(self, x):
        attention = self.attn(x, x, x)
        lstm = self.lstm(attention[0])
        return {"attn": attention, "lstm": lstm, "add": lstm[0] + lstm[1][0][0].unsqueeze(1)}


class Result(NamedTuple):
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass
class Output:
    hidden: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)


class ReturnsNamedTuple(nn.Module):
    def forward(self, x):
        return Result(x + 1, x * 2)


class ReturnsDataclass(nn.Module):
    def forward(self, x):
        return Output(x - 1, {"half": x / 2})


class ReturnsOrderedDict(nn.Module):
    def forward(self, x):
        return OrderedDict(a=x + 3, b=None)


@zoo
class Containers(ZooModel):
    """Tuples, dicts and dataclasses come back as what they are (N6)."""

    def __init__(self) -> None:
        super().__init__()
        self.named, self.data, self.ordered = (
            ReturnsNamedTuple(),
            ReturnsDataclass(),
            ReturnsOrderedDict(),
        )

    def forward(self, x):
        named = self.named(x)
        data = self.data(named.hidden)
        ordered = self.ordered(data.extra["half"])
        return {"out": ordered["a"], "parts": [named.logits, data.hidden]}

    def reference(self, x):
        named = Result(x + 1, x * 2)
        data = Output(x + 1 - 1, {"half": (x + 1) / 2})
        ordered = OrderedDict(a=(x + 1) / 2 + 3, b=None)
        return {
            "named": named,
            "data": data,
            "ordered": ordered,
            "": {"out": ordered["a"], "parts": [named.logits, data.hidden]},
        }


@zoo
class OverwrittenOutput(ZooModel):
    """What a module returned is copied as it was at its return, not later and not earlier."""

    def __init__(self) -> None:
        super().__init__()
        self.block = InPlaceBlock()

    def forward(self, x):
        y = self.block(x)
        y += 10
        return y * 1

    def reference(self, x):
        y = self.block.lin(x)
        return {"block.lin": y, "block": y + 5, "add": y + 5 + 10, "mul": y + 5 + 10}


class InPlaceBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        y = self.lin(x)
        y.add_(5)
        return y


@zoo
class DynamicInside(ZooModel):
    """A submodule that cannot be traced is a leaf; the rest still has its nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dynamic, self.last = linear(1), Halving(), linear(2)

    def forward(self, x):
        return self.last(self.dynamic(self.first(x)).relu())

    def reference(self, x):
        a = self.first(x)
        b = a
        while b.abs().sum() > 1:
            b = b / 2
        return {"first": a, "dynamic": b, "relu": b.relu(), "last": self.last(b.relu())}


class Halving(nn.Module):
    def forward(self, x):
        while x.abs().sum() > 1:
            x = x / 2
        return x


@zoo
class TrainEvalBranch(ZooModel):
    """One submodule's flag chooses a branch (trap 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Branch()

    def forward(self, x):
        return self.inner(x) + 1

    def reference(self, x):
        y = x * 2 if self.inner.training else x - 2
        return {"inner": y, "add": y + 1}


class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x - 2


@zoo
class FrozenBackbone(ZooModel):
    """A ``no_grad`` region inside forward (trap 19)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = linear(1), linear(2)

    def forward(self, x):
        with torch.no_grad():
            y = self.backbone(x)
        return self.head(y)

    def reference(self, x):
        with torch.no_grad():
            y = self.backbone(x)
        return {"backbone": y, "head": self.head(y)}


@zoo
class AutocastIsland(ZooModel):
    """An ``autocast`` region inside forward (trap 19)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(1), linear(2)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.a(x)
        return self.b(y.float())

    def reference(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.a(x)
        return {"a": y, "float": y.float(), "b": self.b(y.float())}


@zoo
class OptionalArgument(ZooModel):
    """An argument that defaults to ``None`` takes the branch of ``None`` (trap 22)."""

    def forward(self, x, mask=None, *, scale=2.0, flag=False):
        if mask is not None:
            x = x.masked_fill(mask, 0)
        return -x * scale if flag else x * scale

    def reference(self, x):
        return {"mul": x * 2.0}


@zoo
class EscapedNames(ZooModel):
    """Names are no regular expressions, and ``a_b`` is not ``a.b`` (trap 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.a_b = linear(1)
        self.a = nn.Sequential(OrderedDict(b=linear(2)))

    def forward(self, x):
        return self.a(self.a_b(x))

    def reference(self, x):
        y = self.a_b(x)
        return {"a_b": y, "a.b": self.a.b(y), "a": self.a.b(y)}


@zoo
class RandomDraw(ZooModel):
    """A draw that no input takes part in is made anew on every call (trap 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(4))  # says where what is made must live

    def forward(self, x):
        noise = torch.rand(4, device=self.like.device)
        return x + noise

    def reference(self, x):
        torch.manual_seed(0)
        return {"add": x + torch.rand(4, device=x.device)}


@zoo
class BufferThroughViews(ZooModel):
    """A buffer written through views and through ``out=`` lists: on each call, never when made."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen[1] += 1
        self.seen.view(2, 2)[1:].add_(2)
        self.seen.data.mul_(3)
        torch._foreach_add_([self.seen], 1.0)
        return x + self.seen

    def reference(self, x):
        seen = self.seen.clone()
        seen[1] += 1
        seen[2:] += 2
        return {"add": x + (seen * 3 + 1)}


@zoo
class ParameterLoop(ZooModel):
    """A momentum encoder writes its weights in the forward, through ``.data``."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        for parameter in self.lin.parameters():
            parameter.data.mul_(0.5)
        return self.lin(x)

    def reference(self, x):
        return {"lin": F.linear(x, self.lin.weight * 0.5, self.lin.bias * 0.5)}


@zoo
class ListInput(ZooModel):
    """A list that the forward changes is changed."""

    def forward(self, parts):
        parts.append(parts[0] * 2)
        parts.reverse()
        return parts[0] + 1

    def example(self):
        return ([*super().example()],)

    def reference(self, parts):
        return {"mul": parts[0] * 2, "add": parts[0] * 2 + 1}


@zoo
class AsksForKinds(ZooModel):
    """A stand-in is asked what it is (trap 22)."""

    def forward(self, x, scale=None):
        if scale is not None:
            x = x * scale
        if not isinstance(x, torch.Tensor) or isinstance(x, (list, tuple)):
            x = x * 3
        if torch.is_tensor(x.relu()) and isinstance(x.shape, tuple):
            x = x + 1
        if isinstance(x.shape[0], int) and isinstance(x.size(0) * 2, int):
            x = x.tanh()
        if hasattr(x, "logits") or getattr(x, "tensors", None) is not None:
            x = x * 5
        return x * 2 if hasattr(x, "sigmoid") and x.dtype is not None else x

    def reference(self, x):
        bent = (x + 1).tanh()
        return {"relu": x.relu(), "add": x + 1, "mul": 4, "tanh": bent, "mul_1": bent * 2}


@zoo
class SeveralOuts(ZooModel):
    """``out=`` with a tuple writes each of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(2))  # says where what is made must live

    def forward(self, x):
        values = torch.zeros(2, device=self.like.device)
        indices = torch.zeros(2, dtype=torch.long, device=self.like.device)
        torch.max(x, 1, out=(values, indices))
        return values + indices

    def reference(self, x):
        best = x.max(1)
        return {"add": best.values + best.indices}


@zoo
class OwnBuffer(ZooModel):
    """A leaf returns its own buffer, and writes it in its next call."""

    def __init__(self) -> None:
        super().__init__()
        self.keeper = Keeper()

    def forward(self, x):
        return self.keeper(x) * 1 + self.keeper(x * 2)

    def reference(self, x):
        return {"keeper": x, "mul": x, "keeper_1": x * 2, "add": x + x * 2}


class Keeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(2, 4))

    def forward(self, x):
        if x.sum() > -1e9:
            self.kept.copy_(x)
        return self.kept


@zoo
class RenormalizedEmbedding(ZooModel):
    """``max_norm`` writes the weight that was read before."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4, max_norm=0.1, _weight=torch.linspace(0, 1, 12).view(3, 4))

    def forward(self, index):
        row = self.table.weight[0]
        return self.table(index) + row

    def example(self):
        return (torch.tensor([0, 2]),)

    def reference(self, index):
        weight = self.table.weight.detach().clone()
        written = nn.Embedding(3, 4, max_norm=0.1, _weight=weight.clone())
        looked_up = written(index)
        return {"getitem": weight[0], "table": looked_up, "add": looked_up + written.weight[0]}


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


@zoo
class Parametrized(ZooModel):
    """A weight that is computed anew on each call, inside of a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(1)
        nn.utils.parametrize.register_parametrization(self.lin, "weight", Doubled())

    def forward(self, x):
        return self.lin(x) + 1

    def reference(self, x):
        weight = self.lin.parametrizations.weight.original * 2
        y = F.linear(x, weight, self.lin.bias)
        return {"x": x, "lin": y, "add": y + 1}


@zoo
class Checkpointed(ZooModel):
    """Activation checkpointing runs the same operations, in the scope of its caller and inside."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Act()

    def forward(self, x):
        y = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)
        return torch.utils.checkpoint.checkpoint(self.twice, y, use_reentrant=False) + 1

    def twice(self, x):
        return x * 2

    def reference(self, x):
        a = self.block.lin(x)
        b = a.relu()
        return {"block.lin": a, "block.act": b, "block": b, "mul": b * 2, "add": b * 2 + 1}


class Cautious(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.picky, self.plain = Picky(), linear(2)

    def forward(self, x):
        try:
            return self.picky(x)
        except ValueError:
            return self.plain(x)


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        y = self.lin(x)
        if y.sum() > -1e9:
            raise ValueError("not like this")
        return y


@zoo
class CaughtException(ZooModel):
    """An exception inside of one module, caught by another."""

    def __init__(self) -> None:
        super().__init__()
        self.cautious, self.last = Cautious(), linear(3)

    def forward(self, x):
        return self.last(self.cautious(x)) * 2

    def reference(self, x):
        y = self.cautious.plain(x)
        return {"cautious": y, "last": self.last(y), "mul": self.last(y) * 2}


class Makes(nn.Module):
    def forward(self, x):
        return nn.Softplus()(x) + nn.Sequential(nn.Tanh())(x)


@zoo
class ModulesMadeInForward(ZooModel):
    """Modules that are made in the forward, and belong to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.makes = Makes()

    def forward(self, x):
        return self.makes(x + 1) * 2

    def reference(self, x):
        y = F.softplus(x + 1) + (x + 1).tanh()
        return {"add": x + 1, "makes": y, "mul": y * 2}
