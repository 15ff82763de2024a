"""Rule M4: extractors of hooks under ``torch.compile``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featuretap_hooks
from support import identical
from zoo import NestedScopes

create = featuretap_hooks.create_feature_extractor
X = torch.ones(2, 4)


def test_M4_compile_with_fullgraph_for_operations_and_early_stop():
    model = NestedScopes()
    (x,) = model.example()
    extractor = create(model, ["stage.0.lin", "stage.1.act"], example_args=(x,))
    expected = extractor(x)
    compiled = torch.compile(extractor, fullgraph=True, backend="eager")
    assert identical(compiled(x), expected)
    unknown = create(model, ["mul"])
    with pytest.raises(Exception, match="call the extractor once before"):
        torch.compile(unknown, fullgraph=True, backend="eager")(x)


class Again(nn.Module):
    """Calls a container and its layers several times, also on its own."""

    def __init__(self):
        super().__init__()
        self.b = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.c = nn.Linear(4, 4)

    def forward(self, x):
        y = self.b(x)
        y = self.b(y) + y
        return self.c(self.b[0](y) + self.b(y))


AGAIN = ["b", "b_1", "b_2", "b.0_1", "b.0_2", "b.0_3", "b.1_2", "add", "add_1", "c"]


@pytest.mark.parametrize("names", [AGAIN, *([name] for name in AGAIN)], ids=" ".join)
def test_M4_compile_with_fullgraph_for_the_second_call_of_a_module(names):
    torch.manual_seed(0)
    torch.compiler.reset()
    model = Again()
    extractor = create(model, names, example_args=(X,))
    seen = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _a, value, path=path: seen.setdefault(path, []).append(value)
        )
        for path, module in model.named_modules()
    ]
    model(X)
    for handle in handles:
        handle.remove()
    features = torch.compile(extractor, fullgraph=True, backend="eager")(X)
    assert list(features) == list(extractor(X))
    for name, value in features.items():
        path, _, number = name.partition("_")
        if path in seen:
            assert torch.equal(value, seen[path][int(number or 0)])
        else:
            assert torch.equal(value, extractor(X)[name])
    assert len(features) == len(names)


@pytest.mark.parametrize("name", ["add", "b_1", "b.0_2"])
def test_M4_compile_that_cannot_know_yet_runs_the_real_forward(name):
    torch.manual_seed(0)
    model = Again()
    expected = create(model, [name])(X)
    torch.compiler.reset()
    compiled = torch.compile(create(model, [name]), backend="eager")
    for _ in range(2):
        assert identical(compiled(X), expected)
