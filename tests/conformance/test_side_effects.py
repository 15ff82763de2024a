"""Rules V1, V2, M5: what a forward does to its arguments, its state and its surroundings is done."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap
from support import copied, here, identical, snapshot
from zoo import linear


def own_operator():
    """An operator of a library of our own, that writes its argument and returns nothing."""
    library = torch.library.Library("featuretap_tests", "DEF")
    library.define("increment(Tensor(a!) x) -> ()")
    library.impl("increment", increment, "CompositeExplicitAutograd")
    return library


def increment(x):
    x.add_(1)


LIBRARY = own_operator()


def custom_operator(self, x):
    y = x * 1
    torch.ops.featuretap_tests.increment(y)
    return y * 1


def overload(self, x):
    y = x * 1
    torch.ops.aten.add_.Tensor(y, 1)
    torch.ops.aten.fill_.Scalar(y[0], 7)
    return y * 1


def unary_plus(self, x):
    y = x * 1
    z = +y
    z.add_(1)
    return y * 1


def sum_to_its_size(self, x):
    y = x * 1
    z = y.sum_to_size(2, 4)
    y.add_(1)
    return z * 1


def statistics_of_a_function(self, x):
    F.instance_norm(x[None], self.norm.running_mean, self.norm.running_var)
    torch.batch_norm(
        x, None, None, self.mean, self.var, True, 0.1, 1e-5, torch.backends.cudnn.enabled
    )
    return x + self.norm.running_mean.sum() + self.mean


def renormalized_bag(self, x):
    y = F.embedding_bag(torch.tensor([[0, 2]]), self.table, max_norm=0.5)
    return x + y + self.table[0]


def writes_its_argument(self, x):
    y = x * 2
    x.zero_()
    return y


def writes_one_of_two_names(self, x, y):
    x.add_(1)
    return y * 1


def fills_a_list(self, x, kept):
    kept[0] = x + 1
    kept[0].add_(1)
    kept.append(x * 3)
    kept[-1].mul_(2)
    return kept[0] * x


def fills_a_dict(self, x, kept):
    kept["a"] = x + 1
    kept["a"].mul_(5)
    kept.update(b=x * 2)
    kept["b"].add_(1)
    return kept["a"] * x


def autocast_in_parts(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = self.lin(x)
        with torch.no_grad():
            z = self.lin(x)
        w = self.lin(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return w + z + self.lin(x)


def tensor_as_default(self, x, scale=torch.ones(4)):  # noqa: B008 (as models do)
    return self.lin(x) * scale


def more_keywords(self, x, **others):
    return self.lin(x) * len(others) + x


def ones():
    return torch.ones(2, 4)


def one_tensor_twice():
    x = ones()
    return x, x


MODELS = {
    custom_operator: lambda: (ones(),),
    overload: lambda: (ones(),),
    unary_plus: lambda: (ones(),),
    sum_to_its_size: lambda: (ones(),),
    statistics_of_a_function: lambda: (torch.arange(8.0).view(2, 4),),
    renormalized_bag: lambda: (ones(),),
    writes_its_argument: lambda: (ones(),),
    writes_one_of_two_names: one_tensor_twice,
    fills_a_list: lambda: (ones(), [None]),
    fills_a_dict: lambda: (ones(), {}),
    autocast_in_parts: lambda: (ones(),),
    tensor_as_default: lambda: (ones(),),
    more_keywords: lambda: (ones(),),
}


def model_of(function):
    class Net(nn.Module):
        forward = function

        def __init__(self):
            super().__init__()
            self.lin = linear(1)
            self.norm = nn.InstanceNorm1d(2, track_running_stats=True)
            self.table = nn.Parameter(torch.arange(12.0).view(3, 4), requires_grad=False)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

    return Net().eval()


@pytest.mark.parametrize("function", MODELS, ids=lambda function: function.__name__)
def test_V2_output_arguments_state_and_gradients_are_those_of_the_model(extract, function):
    model, example = model_of(function), MODELS[function]
    twin = copy.deepcopy(model)
    extractor = extract(model, "")
    for _ in range(2):
        ours, theirs = example(), example()
        features, output = extractor(*ours), twin(*theirs)
        assert identical(copied(features[""]), copied(output))
        assert identical(copied(ours), copied(theirs))
        assert identical(copied(model.state_dict()), copied(twin.state_dict()))
        if output.requires_grad:
            features[""].sum().backward()
            output.sum().backward()
    grads = [[p.grad for p in one.parameters() if p.grad is not None] for one in (model, twin)]
    assert identical(*grads)


@pytest.mark.parametrize("function", [fills_a_list, fills_a_dict])
def test_V1_what_was_put_into_a_container_is_copied_before_it_is_written_there(extract, function):
    features = extract(model_of(function), ["add", ""])(*MODELS[function]())
    assert identical(features["add"], ones() + 1)


def test_V2_fx_refuses_keywords_that_were_not_there_to_be_traced(backend, extract):
    model = model_of(more_keywords)
    extractor, x = extract(model, ""), ones()
    if backend != "fx":
        assert identical(extractor(x, a=1)[""], model(x, a=1))
        return
    with pytest.raises(ValueError, match=r"without further keyword arguments \(\*\*others\).* a"):
        extractor(x, a=1)
    with pytest.raises(featuretap.UntraceableModelError, match=r"others"):
        extract(model, "", example_args=(x,), example_kwargs={"a": 1})


def test_V1_an_own_call_method_of_the_model_makes_its_output(extract):
    class Doubled(nn.Module):
        def __call__(self, x):
            return super().__call__(x) * 2

        def forward(self, x):
            return x + 1

    model = Doubled()
    assert identical(extract(model, "")(ones())[""], model(ones()))


class Logs(nn.Module):
    """Keeps what it saw outside of any module."""

    seen: list[object] = []  # noqa: RUF012 (shared on purpose)

    def forward(self, x):
        self.seen.append(x)
        Logs.last = x
        if "bias" not in CACHE:
            CACHE["bias"] = x + 1
        return x * 2 + CACHE["bias"]


CACHE: dict[str, object] = {}


@pytest.mark.only("fx", why="hooks make no stand-in")
def test_M5_trap28_classes_and_globals_hold_no_stand_in(extract, names_of):
    model = nn.Sequential(Logs())
    names_of(model)
    extract(model, "")
    assert Logs.seen == []
    assert not hasattr(Logs, "last")
    assert CACHE == {}


def test_M1_parameters_are_in_the_order_of_the_model(extract):
    """Optimizers know parameters by their number."""

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.blocks = nn.Sequential(linear(1), nn.Sequential(linear(2)))
            self.head = linear(3)

        def forward(self, x):
            return self.blocks[0](self.blocks[1](self.head(x))) * self.scale

    model = Backwards()
    extractor = extract(model, "")
    order = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in extractor.named_parameters()] == order
    assert list(extractor.state_dict()) == list(model.state_dict())


def sets_a_flag(self, x):
    self.norm.train()
    return self.norm(x)


def sets_an_attribute(self, x):
    self.drop.p = 0.9
    return self.drop(x)


def chooses_kernels(self, x):
    torch.backends.mkldnn.set_flags(True)
    return self.lin(x)


def hooks_for_saved_tensors(self, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 0, lambda t: t):
        return self.lin(x) ** 2


def own_generator(self, x):
    return x + torch.rand(4, generator=self.generator)


def calls_backward(self, x):
    a = x.detach().clone().requires_grad_(True)
    self.lin(a).sum().backward()
    return x - a.grad


def any_number(self, x, *more):
    return self.lin(x) + sum(more)


REFUSED = {
    sets_a_flag: r"sets \.training of 'norm'",
    sets_an_attribute: r"sets \.p of 'drop'",
    chooses_kernels: r"chooses kernels \(torch\.mkldnn_enabled\)",
    hooks_for_saved_tensors: "hooks for tensors that are saved",
    own_generator: r"a torch\.Generator of its own",
    calls_backward: r"calls backward\(\)",
    any_number: r"any number of arguments, \*more",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_V2_fx_refuses_what_it_would_lose_and_hooks_do_it(backend, extract, function):
    class Net(nn.Module):
        forward = function

        def __init__(self):
            super().__init__()
            self.lin, self.norm, self.drop = linear(1), nn.BatchNorm1d(4), nn.Dropout()
            self.generator = torch.Generator(here())

    model = Net().eval()
    before = snapshot(model)
    if backend == "fx":
        # What fails in eval mode alone still serves train mode, and says so when it is called.
        with pytest.raises((RuntimeError, ValueError), match=REFUSED[function]):
            extract(model, "")(ones())
        assert snapshot(model) == before
        return
    torch.manual_seed(0)
    features = extract(model, "")(ones())
    torch.manual_seed(0)
    assert features[""].shape == model(ones()).shape


def test_V2_trap25_python_attributes_are_fixed_in_fx_and_live_in_hooks(backend, extract):
    class Scaled(nn.Module):
        scale = 2.0

        def forward(self, x):
            return x * self.scale

    model = Scaled()
    extractor = extract(model, "mul")
    model.scale = 3.0
    expected = 2.0 if backend == "fx" else 3.0
    assert identical(extractor(ones())["mul"], ones() * expected)
