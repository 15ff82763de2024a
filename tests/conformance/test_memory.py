"""Rules N and V where a forward writes memory of the model, and where modules hide what they call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap
from support import drawn, identical
from zoo import linear


class _Bank(nn.Module):
    """Keeps what it has seen in a buffer, and asks it something."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(6, 4))
        self.register_buffer("seen", torch.zeros(1, dtype=torch.long))
        self.project = linear(1)
        self.act = nn.ReLU()
        self.ask = ask

    def forward(self, x):
        y = self.project(x)
        with torch.no_grad():
            self.bank[: x.shape[0]] = y
            self.seen.add_(x.shape[0])
        return y * (y.shape[0] * self.ask(self))


def _of_a_constant(model: Any) -> int:
    made = torch.zeros(4, 4)
    made[0] = model.project.weight[0]
    return made.shape[0]


ASKED: dict[str, Callable[[Any], Any]] = {
    "shape": lambda model: model.bank.shape[0],
    "size": lambda model: model.bank.size(0),
    "numel": lambda model: model.bank.numel(),
    "length": lambda model: len(model.bank),
    "of a view": lambda model: model.bank.t().shape[0],
    "of a row": lambda model: model.bank[0].size(0),
    "of a property": lambda model: model.bank.mT.shape[0],
    "of what was gathered": lambda model: model.bank[model.seen % 6].shape[0],
    "of what another layer made": lambda model: model.project(model.bank).shape[0],
    "of what a layer without parameters made": lambda model: model.act(model.bank).shape[0],
    "after one more write": lambda model: model.bank.add_(1).shape[0],
    "of two": lambda model: torch.cat([model.bank, model.bank]).shape[0],
    "used in a view": lambda model: model.bank.view(model.bank.shape[0], -1).size(1),
    "stride": lambda model: model.bank.stride(0),
    "of a constant": _of_a_constant,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=list(ASKED))
def test_N9_the_size_of_memory_that_was_written_is_the_same_node_or_none(ask):
    pytest.importorskip("featuretap_hooks")
    example = (drawn(3, 4),)
    by_backend = {
        backend: featuretap.get_graph_node_names(_Bank(ask), example_args=example, backend=backend)
        for backend in ("fx", "hooks")
    }
    assert by_backend["fx"] == by_backend["hooks"]
    values = [
        featuretap.create_feature_extractor(_Bank(ask), list(names), backend=backend)(*example)
        for backend, names in by_backend.items()
    ]
    for name in by_backend["fx"]:
        assert identical(values[0][name], values[1][name]), name


def test_N1_the_size_of_a_written_buffer_is_no_node(names_of):
    names = names_of(_Bank(ASKED["shape"]), example_args=(drawn(3, 4),))
    assert "getattr_2" in names
    assert "getattr_3" not in names


class _NamedAlike(nn.Module):
    """Has a module named like each operation, which it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(4, 4))
        self.neg = nn.Identity()
        self.weight = nn.Parameter(drawn(4, 4))

    def forward(self, x):
        return -F.linear(x, self.weight)


@pytest.mark.parametrize("name", ["linear", "neg"])
def test_N5_the_path_of_a_module_that_is_not_called_names_no_operation(extract, name):
    with pytest.raises(featuretap.NodeNotFoundError, match=f"{name}_1"):
        extract(_NamedAlike(), name)(drawn(2, 4))
    expected = _NamedAlike()(drawn(2, 4))
    assert identical(extract(_NamedAlike(), "neg_1")(drawn(2, 4))["neg_1"], expected)


class _ReadAgain(nn.Module):
    """Reads a weight once more that a layer has computed for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))

    def forward(self, x):
        return F.linear(self.layer(x), self.layer.weight)


def test_N9_what_a_leaf_module_called_itself_counts(backend):
    """The first call is inside of ``layer``, where fx sees nothing: it leaves the second without a name."""
    torch.manual_seed(0)
    model = _ReadAgain()
    first = "layer.parametrizations.weight"
    names = featuretap.get_graph_node_names(
        model, backend=backend, example_args=(drawn(2, 4),), suppress_diff_warning=True
    )
    assert first not in names
    if backend == "fx":
        with pytest.raises(featuretap.NodeNotFoundError, match="leaf module"):
            featuretap.create_feature_extractor(model, first, backend=backend)
        return
    returned: list[torch.Tensor] = []
    inner = model.layer.parametrizations.weight
    handle = inner.register_forward_hook(lambda *given: returned.append(given[2].detach()))
    random = torch.get_rng_state()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model(drawn(2, 4))
    handle.remove()
    model.load_state_dict(kept)
    torch.set_rng_state(random)
    found = featuretap.create_feature_extractor(model, [first, f"{first}_1"], backend=backend)(
        drawn(2, 4)
    )
    assert identical([value.detach() for value in found.values()], returned)
