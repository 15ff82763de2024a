"""Rules N and V where a forward writes memory of the model, and where modules hide what they call."""

from __future__ import annotations

import gc
import weakref
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
def test_N5_N7_the_path_of_a_module_that_is_not_called_is_a_name_of_torchvision_alone(
    extract, names_of, backend, name
):
    x, expected = drawn(2, 4), extract(_NamedAlike(), f"{name}_1")(drawn(2, 4))
    assert name not in names_of(_NamedAlike(), example_args=(x,))
    assert f"{name}_1" in names_of(_NamedAlike(), example_args=(x,))
    if backend == "fx":  # which lists what torchvision lists, and knows what it means there
        assert identical(extract(_NamedAlike(), {name: f"{name}_1"})(x), expected)
    else:
        with pytest.raises(featuretap.NodeNotFoundError, match=f"{name}_1"):
            extract(_NamedAlike(), name)(x)


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


class _Notes(nn.Module):
    """Cannot be traced, and so is one node; keeps what it sees in some way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls, self.seen = how, 0, []
        self.register_buffer("state", torch.zeros(4))

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("not finite")
        mean = x.detach().mean(0)
        if self.how == "writes":
            self.state.copy_(mean)
        elif self.how == "sets":
            self.state = mean
        else:
            self.seen.append(mean)
        return x * 2


class _Reads(nn.Module):
    """Reads that from another node."""

    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self.notes = notes

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("not finite")
        return x + self.notes.state + sum(self.notes.seen)


class _NotesBeside(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.lin, self.notes = linear(1), _Notes(how)
        self.reads = _Reads(self.notes)

    def forward(self, x):
        y = self.lin(x)
        self.notes(y - 1)
        return self.reads(y) * 3


@pytest.mark.parametrize("how", ["writes", "sets", "fills"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_V2_a_leaf_whose_result_is_not_used_does_what_it_does(extract, how, training):
    model, reference = _NotesBeside(how).train(training), _NotesBeside(how).train(training)
    extractor = extract(model, ["mul"])
    for number in range(3):
        x = drawn(2, 4, seed=number)
        assert identical(extractor(x)["mul"].detach(), reference(x).detach())
    assert identical(model.notes.state, reference.notes.state)
    assert identical(model.notes.seen, reference.notes.seen)


SEEN = torch.zeros(4)


def notes_globally(x):
    """Keep a mean."""
    SEEN.copy_(x.detach().mean(0) if torch.isfinite(x).all() else x[0])


def draws_numbers(x):
    """Add noise that nobody uses."""
    return x + torch.rand(4, device=x.device)


def fills(values, x):
    """Exchange an item."""
    values[0] = x * 2


class _CallsAFunction(nn.Module):
    """Calls a function that is one node, for what it does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.lin, self.how = linear(1), how

    def forward(self, x):
        y = self.lin(x)
        if self.how == "notes":
            notes_globally(y - 1)
            return y + SEEN
        if self.how == "draws":
            draws_numbers(y - 1)
            return y + torch.rand(4, device=x.device)
        values = [y, x]
        fills(values, y)
        return y + values[0]


WRAPPED = {"autowrap_functions": [notes_globally, draws_numbers, fills]}


@pytest.mark.parametrize("how", ["notes", "draws", "fills"])
def test_V2_a_wrapped_function_whose_result_is_not_used_does_what_it_does(extract, backend, how):
    SEEN.data = SEEN.data.to(drawn(1).device)
    model, x = _CallsAFunction(how).eval(), drawn(2, 4)
    if backend == "fx" and how == "fills":
        with pytest.raises(
            featuretap.UntraceableModelError, match="list or dict is given to fills"
        ):
            extract(model, "add", tracer_kwargs=WRAPPED)
        return
    extractor = extract(model, "add", tracer_kwargs=WRAPPED)
    for _ in range(2):
        SEEN.zero_(), torch.manual_seed(1)
        expected = model(x)
        SEEN.zero_(), torch.manual_seed(1)
        assert identical(extractor(x)["add"].detach(), expected.detach())


class _Drops(nn.Module):
    """Is one node, since it looks at values."""

    def forward(self, x):
        return F.dropout(x, 0.5) if torch.isfinite(x).all() else x


class _Lists(nn.Module):
    """Is one node, and fills a list of its own."""

    def forward(self, x):
        found = []
        found.append(x * 2 if torch.isfinite(x).all() else x)
        return found[0]


class _BesideALeaf(nn.Module):
    def __init__(self, aside: nn.Module) -> None:
        super().__init__()
        self.lin, self.norm, self.aside = linear(1), nn.LayerNorm(4), aside

    def forward(self, x):
        y = self.lin(x)
        self.aside(self.norm(y))
        return F.dropout(y, 0.5, training=True)


def test_V1_a_leaf_that_draws_in_eval_mode_is_not_left_out(extract):
    model, x = _BesideALeaf(_Drops()).eval(), drawn(2, 4)
    extractor = extract(model, "dropout")
    for _ in range(2):
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert identical(extractor(x)["dropout"].detach(), expected.detach())


def test_C1_a_leaf_that_keeps_nothing_and_is_not_needed_does_not_run():
    model = _BesideALeaf(_Lists()).eval()
    extractor = featuretap.create_feature_extractor(
        model, eval_return_nodes=["dropout"], train_return_nodes=["lin"], backend="fx"
    )
    assert [name for name, _ in extractor.named_children()] == ["lin"]


def test_C2_the_example_is_not_kept_alive(extract):
    example = torch.ones(2, 4)
    extractor = extract(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "1", example_args=(example,))
    kept = weakref.ref(example)
    del example
    gc.collect()
    assert kept() is None
    assert extractor(torch.ones(2, 4))["1"].shape == (2, 4)
