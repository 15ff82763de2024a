"""Rules V2, V3 and E2: what fx cannot record faithfully it refuses, and never guesses."""

from __future__ import annotations

import copy
import functools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

import featuretap
from support import copied, identical, snapshot


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


@functools.cache
def grid(size):
    return torch.arange(4.0)


def assigns_data(self, x):
    y = self.lin(x)
    y.data = y.data * 2
    return y + 1


def assigns_buffer(self, x):
    self.average = 0.9 * self.average + 0.1 * x.mean(0)
    return self.lin(x) - self.average


def assigns_state(self, x):
    self.state = self.state * 0.5
    return self.lin(x) + self.state


def swallows_a_branch(self, x):
    return branch_or_not(self, x)


def branch_or_not(self, x):
    try:
        if x.sum() > 0:
            return self.lin(x)
    except Exception:
        pass
    return x


def swallows_a_size(self, x):
    return sized(self, x)


def catches(self, x):
    try:
        return self.lin(x)
    except RuntimeError:
        return x


def sized(self, x):
    try:
        n = int(x.shape[0])
    except TypeError:
        n = 77
    return self.lin(x) * n


def looks_up_a_dtype(self, x):
    return self.lin(x) * (2 if x.dtype in {torch.float32} else 3)


def caches_by_size(self, x):
    return self.lin(x) + grid(x.shape[1])


def custom_backward(self, x):
    return Doubling.apply(self.lin(x))


def reads_a_buffer(self, x):
    return self.lin(x) if self.average.sum() > 0 else x


def reads_a_draw(self, x):
    return self.lin(x) if torch.rand(()).item() > 0.5 else x


def asks_for_gradients(self, x):
    return self.lin(x) if torch.is_grad_enabled() else x


def seeds_the_generator(self, x):
    torch.manual_seed(0)
    return self.lin(x) + torch.rand(4)


def forks_the_generator(self, x):
    with torch.random.fork_rng(devices=[]):
        return self.lin(x) + torch.rand(4)


def asks_what_a_module_returned(self, x):
    y = self.lstm(x)
    return y[0] if isinstance(y, tuple) else y


def asks_for_an_attribute_of_a_result(self, x):
    y = self.lstm(x)
    return self.lin(y[0] if hasattr(y, "count") else y)


def python_random(self, x):
    return self.lin(x) * random.random()


def goes_through_numpy(self, x):
    y = self.lin(x)
    y.detach().cpu().numpy()[:] = 1
    return y + 1


def looks_at_grad_fn(self, x):
    return self.lin(x) * (2 if x.grad_fn is None else 3)


def switches_gradients_by_an_input(self, x):
    with torch.set_grad_enabled(x.requires_grad):
        return self.lin(x)


def copies_deeply(self, x):
    return self.lin(copy.deepcopy(x))


def asks_for_the_default_dtype(self, x):
    return self.lin(x) * (2 if torch.get_default_dtype() == torch.float32 else 3)


def counts_what_is_trained(self, x):
    return self.lin(x) * sum(p.numel() for p in self.parameters() if p.requires_grad)


double = Doubling.apply


def custom_backward_bound_before(self, x):
    return functools.partial(double)(self.lin(x)) + 1


checkpointed = CheckpointFunction.apply


def checkpoint_bound_before(self, x):
    return checkpointed(self.lin, False, self.lin(x)) + 1


def calculates_in_a_thread(self, x):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(self.lin, x).result() + 1


def asks_torchscript_for_the_kind(self, x):
    y = self.lin(x)
    return y + 1 if torch.jit.isinstance(x, torch.Tensor) else y


REFUSED = [
    (copies_deeply, "copies a value with Python's copy"),
    (asks_for_the_default_dtype, r"asks torch.get_default_dtype\(\)"),
    (counts_what_is_trained, "asks for .requires_grad of a tensor that the model keeps"),
    (assigns_data, "assignment to .data"),
    (assigns_buffer, "buffers?:? .?average"),
    (assigns_state, r"changes \.state"),
    (swallows_a_branch, "catches exceptions"),
    (swallows_a_size, "catches exceptions"),
    (catches, "catches exceptions"),
    (looks_up_a_dtype, "used as a key"),
    (caches_by_size, "used as a key"),
    (custom_backward, "backward of the autograd.Function Doubling would be lost"),
    (custom_backward_bound_before, "backward of the autograd.Function Doubling would be lost"),
    (checkpoint_bound_before, "backward of the autograd.Function CheckpointFunction would be lost"),
    (calculates_in_a_thread, "calculates in another thread"),
    (asks_torchscript_for_the_kind, r"asks torch.jit.isinstance\(\)"),
    (reads_a_buffer, "looks at the value of a buffer"),
    (reads_a_draw, "looks at the value of a buffer, a parameter or a random number"),
    (asks_for_gradients, r"asks torch.is_grad_enabled\(\)"),
    (seeds_the_generator, r"calls torch.manual_seed\(\)"),
    (forks_the_generator, r"calls torch.fork_rng\(\)"),
    (asks_what_a_module_returned, "what kind of object a value is"),
    (asks_for_an_attribute_of_a_result, "whether a value has .count"),
    (goes_through_numpy, "leaves torch for NumPy"),
    (looks_at_grad_fn, r"looks at \.grad_fn"),
    (switches_gradients_by_an_input, r"hands on .requires_grad of a value|must be (a )?bool"),
    (python_random, "draws from Python's or NumPy's random numbers"),
]


def model_of(function):
    class Net(nn.Module):
        forward = function

        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.register_buffer("average", torch.zeros(4))
            self.state = torch.ones(4)
            self.lstm = nn.LSTM(4, 4)

    return Net()


NAMES = [function.__name__ for function, _ in REFUSED]
FX_ONLY = pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")


@pytest.mark.parametrize(("function", "reason"), REFUSED, ids=NAMES)
@FX_ONLY
def test_E2_V2_what_cannot_be_recorded_is_refused_with_its_reason(extract, function, reason):
    model = model_of(function)
    before = snapshot(model)
    with pytest.raises(featuretap.UntraceableModelError, match=reason) as caught:
        extract(model, "")
    for way in ("leaf_modules", "autowrap_functions", "concrete_args", "hooks"):
        assert way in str(caught.value)
    assert snapshot(model) == before


@pytest.mark.parametrize(("function", "reason"), REFUSED[:-1], ids=NAMES[:-1])
@FX_ONLY
def test_E2_the_same_inside_a_submodule_makes_it_a_leaf(extract, function, reason):
    model = nn.Sequential(nn.ReLU(), model_of(function), nn.Tanh())
    x = torch.randn(2, 4)
    state = copied(model.state_dict())
    extractor = extract(model, ["1", "2"])
    assert list(extractor.auto_leaves) == ["1"]
    torch.manual_seed(3)
    features = copied(dict(extractor(x)))
    model.load_state_dict(state)
    model[1].state = torch.ones(4)
    torch.manual_seed(3)
    assert identical(features["2"], copied(model(x)))


def test_E2_the_error_names_the_file_and_line_of_the_model():
    with pytest.raises(featuretap.UntraceableModelError) as caught:
        featuretap.create_feature_extractor(model_of(swallows_a_size), "", backend="fx")
    line = sized.__code__.co_firstlineno + 2
    assert caught.value.location == f"{__file__}:{line}"
    assert f"{__file__}:{line}" in str(caught.value)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.gumbel_softmax(x),
        lambda x: F.dropout(x),
        lambda x: torch.rand(3),
        lambda x: torch.rand_like(x),
        lambda x: torch.empty(3).normal_(),
        lambda x: nn.init.kaiming_uniform_(torch.empty(3, 3)),
    ],
)
def test_V1_draws_that_nobody_needs_still_move_the_generator(extract, draw):
    class Net(nn.Module):
        def forward(self, x):
            draw(x)
            return x + torch.rand(4)

    model, x = Net(), torch.ones(2, 4)
    extractor = extract(model, "")
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert identical(extractor(x)[""], expected)


def test_E3_options_of_a_wrong_kind_are_shown(extract):
    model = nn.Sequential(nn.ReLU())
    for kwargs, match in [
        ({"concrete_args": 5}, "concrete_args must be a dict"),
        ({"tracer_kwargs": 5}, "tracer_kwargs must be a dict"),
        ({"tracer_kwargs": {"leaf_modules": [5]}}, "leaf_modules takes module types"),
        ({"tracer_kwargs": {"autowrap_functions": ["f"]}}, "autowrap_functions takes functions"),
    ]:
        with pytest.raises(TypeError, match=match):
            extract(model, "0", **kwargs)


class CallsAnothersLayer(nn.Module):
    """One node, for it looks at values; its layer is its parent's as well."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(x) - 10 if x.sum() > 0 else x


class CallsALayerAgain(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.inner = CallsAnothersLayer(self.act)

    def forward(self, x):
        return self.act(self.inner(x)) + 1


def test_E2_N5_calls_that_are_inside_of_one_node_are_not_left_uncounted(backend, extract):
    model, x = CallsALayerAgain(), torch.tensor([[5.0, 20.0]])
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match="act is called after a module"):
            extract(model, ["act"])
    else:
        features = dict(extract(model, ["act", "act_1"])(x))
        assert identical(features, {"act": x, "act_1": F.relu(x - 10)})
