"""Rules V2 and M5: what torch shows to no torch-function mode is done by the model, or refused by fx."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import featuretap
from support import copied, identical, snapshot


def doubled(t: torch.Tensor):
    return t * 2


def drawn(t: torch.Tensor):
    return t * torch.rand(2)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scripted, draws = torch.jit.script(doubled), torch.jit.script(drawn)


class Own(torch.Tensor):
    pass


def undisturbed(t):
    with torch._C.DisableTorchFunction():
        return t * 2


def imaginary(t):
    made = torch.complex(t, t)
    made.imag = torch.full((2,), 3.0)
    return torch.view_as_real(made)[:, 1]


def swapped(t):
    torch.utils.swap_tensors(t, t * 5)
    return t


def filled(t):
    t.untyped_storage().fill_(0)
    return t


def through_numpy(t):
    made = torch.ones(2)
    made.numpy()[1] = 7
    return made * t


USES = {
    "script": scripted,
    "vmap": torch.vmap(lambda t: t * 2),
    "grad": torch.func.grad(lambda t: t.pow(3).sum()),
    "nested": lambda t: torch.nested.nested_tensor([t, t]).to_padded_tensor(0.0)[0],
    "parameter": lambda t: nn.Parameter(t),
    "legacy": lambda t: torch.Tensor(t),
    "class": lambda t: t.as_subclass(Own).as_subclass(torch.Tensor),
    "dlpack": lambda t: torch.from_dlpack(t),
    "disabled": undisturbed,
    "set_": lambda t: torch.zeros(2).set_(t),
    "imaginary": imaginary,
    "apply_": lambda t: (t + 0).apply_(lambda value: value * 5),
    "fill_": filled,
    "numpy": through_numpy,
}
if hasattr(torch.utils, "swap_tensors"):
    USES["swap"] = swapped
WARNS = "ignore:.*(nested tensors|TypedStorage|torch.jit)"


class Uses(nn.Module):
    def __init__(self, use, on):
        super().__init__()
        self.use = use
        self.on = on
        self.register_buffer("kept", torch.ones(2))

    def forward(self, x):
        given = {"buffer": self.kept, "draw": torch.rand(2)}[self.on]
        return x * self.use(given)


X = torch.ones(2)


@pytest.mark.parametrize("on", ["buffer", "draw"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")
@pytest.mark.filterwarnings(WARNS)
def test_V2_M5_it_is_refused_and_changes_nothing(extract, use, on):
    model = Uses(use, on)
    before, content = snapshot(model), copied(model.state_dict())
    with pytest.raises(featuretap.UntraceableModelError):
        extract(model, "")
    assert snapshot(model) == before
    assert identical(copied(model.state_dict()), content)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.only("hooks", why="fx refuses these")
@pytest.mark.filterwarnings(WARNS)
@torch.no_grad()
def test_V2_the_real_forward_does_it(extract, use):
    model, reference = Uses(use, "buffer"), Uses(use, "buffer")
    extractor = extract(model, "")
    for _ in range(2):
        assert identical(copied(extractor(X)[""]), copied(reference(X)))


@pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")
@pytest.mark.filterwarnings(WARNS)
def test_V2_random_numbers_of_compiled_code_are_no_constants(extract):
    with pytest.raises(featuretap.UntraceableModelError, match="runs aten.rand"):
        extract(Uses(lambda t: draws(torch.ones(2)), "buffer"), "")


def test_V2_views_that_the_model_keeps_in_a_container_are_no_such_tensors(extract):
    class Tables(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = torch.arange(4.0).split(2)
            self.register_buffer("kept", torch.ones(4))
            self.views = [self.kept[:2]]

        def forward(self, x):
            return x * self.tables[0] + self.tables[1] * self.views[0]

    model = Tables()
    assert identical(extract(model, "")(X)[""], model(X))


@pytest.mark.filterwarnings(WARNS)
def test_V2_what_is_computed_of_constants_alone_may_be_unseen(extract):
    model = Uses(lambda t: scripted(torch.ones(2)) + torch.Tensor([1.0, 2.0]), "buffer")
    assert identical(extract(model, "")(X)[""], model(X))
