"""Rules V2, E2: a forward asks for the type of a value, and calls torch, which looks at its arguments too.

An argument that seems to be a tensor and is a stand-in ends the process there. So the two are told apart
by the call that the forward is at, however that is written.
"""

from __future__ import annotations

import builtins
from functools import partial
from types import FunctionType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featuretap import UntraceableModelError
from support import identical, with_forward

NAMES = {
    "torch": torch,
    "nn": nn,
    "F": F,
    "builtins": builtins,
    "partial": partial,
    "is_one": isinstance,
    "choose": torch.where,
}

CALLS = [
    "torch.pow(x, 2)",
    "torch.where(k, x, 0.0)",
    "torch.where(k, net.weight, 0.0)",
    "choose(k, x, 1)",
    "torch.where(k, x if net.training else x * 2, 0)",
    "torch.where(condition=k, input=x, other=0.0)",
    "torch.where(*(k, x, 0.0))",
    "getattr(torch, 'where')(k, x, 0.0)",
    "net.weight.where(k[0], x[0])",
    "torch.bitwise_and(k.long(), 1)",
    "torch.remainder(x, 5) + x.remainder(2)",
    "torch.isin(k.long(), 1)",
    "x.to(torch.result_type(x, 1))",
    "torch.special.xlogy(x.abs(), 2)",
    "torch.Tensor(x.cpu()).to(x)",
    "net.weight + x - net.weight * x",
    "sum([net.weight, x, x])",
    "pow(net.weight, x)",
    "F.threshold(x, 1.0, 0.0)",
    "torch.stack([torch.pow(y, 2) for y in (x, x + 1)])",
]
ASKS = [
    "isinstance(x, torch.Tensor)",
    "ask(x, (str, torch.Tensor))",
    "is_one(x, torch.Tensor)",
    "builtins.isinstance(x, torch.Tensor)",
    "isinstance(x if net else k, str if k is net else torch.Tensor)",
    "isinstance(net, nn.Module) and isinstance(x, torch.Tensor)",
    "isinstance(k is net or x, torch.Tensor)",
    "any(isinstance(y, torch.Tensor) for y in (net, x))",
    "[isinstance(y, torch.Tensor) for y in [x]][0]",
    "all(map(isinstance, [x], [torch.Tensor]))",
    "[*map(isinstance, [x], [torch.Tensor])][0]",
    "partial(isinstance, x)(torch.Tensor)",
    "isinstance(*(x, torch.Tensor))",
    "getattr(builtins, 'isinstance')(x, torch.Tensor)",
    "is_one(k is net or x, net and torch.Tensor)",
]


def forward_of(text: str) -> FunctionType:
    found = dict(NAMES)
    exec(text, found)
    return found["forward"]


def same_or_refused(extract, backend, model, x):
    try:
        extractor = extract(model, "")
    except UntraceableModelError:
        assert backend == "fx"
        return False
    assert identical(extractor(x)[""], model(x))
    return True


@pytest.mark.parametrize("call", CALLS)
def test_V2_torch_is_called_where_the_forward_asks_for_a_type(extract, backend, device, call):
    forward = forward_of(
        "def forward(net, x):\n"
        "    x = x * 2 if isinstance(x, torch.Tensor) else x + 1\n"
        "    k = x > 1\n"
        f"    return {call}\n"
    )
    model = with_forward(forward, weight=nn.Parameter(torch.tensor([1.0, 2.0, 0.5, 1.0]))).to(
        device
    )
    x = torch.tensor([[0.5, 1.5, 2.0, 1.0], [2.0, 0.25, 1.0, 3.0]], device=device)
    is_served = same_or_refused(extract, backend, model, x)
    assert is_served or call.startswith(("getattr", "torch.Tensor", "x.to"))


@pytest.mark.parametrize("ask", ASKS)
def test_V2_a_type_is_asked_for_in_any_way(extract, backend, device, ask):
    forward = forward_of(
        "def forward(net, x):\n"
        "    ask, k = isinstance, x > 1\n"
        f"    x = x * 3 if {ask} else x + 1\n"
        "    return torch.where(k, x, 0.0)\n"
    )
    model, x = with_forward(forward), torch.tensor([0.5, 2.0], device=device)
    is_served = same_or_refused(extract, backend, model, x)
    assert is_served or ask.startswith(("partial", "getattr"))
