"""A forward that has changed something ends early where that stays so, or can be turned back."""

from __future__ import annotations

import contextvars
import functools

import pytest
import torch
from torch import nn

import featuretap
from featuretap_hooks import create_feature_extractor
from zoo import WithoutForward

X = torch.ones(2, 4)

COLLECTING = contextvars.ContextVar("COLLECTING", default=None)


def collects_in_a_context(net, x):
    token = COLLECTING.set([])
    try:
        return net.run(x)
    finally:
        COLLECTING.reset(token)


def collects_without_finally(net, x):
    token = COLLECTING.set([])
    y = net.run(x)
    COLLECTING.reset(token)
    return y


def patches_a_function(net, x):
    kept, nn.functional.gelu = nn.functional.gelu, None
    y = net.run(x)
    nn.functional.gelu = kept
    return y


def takes_another_class(net, x):
    net.out.__class__ = nn.Bilinear
    net.out.__class__ = nn.Linear
    y = net.run(x)
    net.lin.__class__, net.out.__class__ = nn.Linear, nn.Linear
    return y


def counts_in_finally(net, x):
    net.label = "running"
    try:
        y = net.run(x)
        net.label = "idle"
        return y
    finally:
        net.table["rate"] += 1


def evaluates_for_a_while(net, x):
    net.lin.eval()
    y = net.run(x)
    net.lin.train(net.training)
    return y


def labels_itself_for_a_while(net, x):
    net.label, label = "running", net.label
    y = net.run(x)
    net.label = label
    return y


def freezes_for_a_while(net, x):
    net.out.requires_grad_(False)
    y = net.run(x)
    net.out.requires_grad_(True)
    return y


@pytest.mark.parametrize(
    ("forward", "is_ended"),
    [
        (collects_in_a_context, True),
        (collects_without_finally, True),
        (patches_a_function, False),
        (takes_another_class, False),
        (counts_in_finally, False),
        (evaluates_for_a_while, False),
        (labels_itself_for_a_while, False),
        (freezes_for_a_while, False),
    ],
)
def test_C1_a_forward_ends_early_where_it_has_switched_a_context_variable_alone(forward, is_ended):
    net = type("Switches", (WithoutForward,), {"forward": forward})().train()
    net.label = "idle"
    # Makes the code one that may switch hooks, as that of transformers.
    net.on = lambda: net.lin.register_forward_hook(print)
    extractor = create_feature_extractor(net, ["lin"])
    ran, gelu = [], nn.functional.gelu
    for call in range(3):
        ran.clear()
        with net.out.register_forward_hook(lambda *_: ran.append(1)):
            extractor(X)
        assert torch.equal(extractor(X)["lin"], nn.functional.linear(X, *net.lin.parameters()))
        assert (net.label, net.lin.training, COLLECTING.get()) == ("idle", True, None)
        assert all(parameter.requires_grad for parameter in net.parameters())
        assert nn.functional.gelu is gelu
        assert net.table["rate"] == (2 * call + 3 if forward is counts_in_finally else 1)
    assert bool(ran) is not is_ended


@functools.lru_cache
def scale_of(kind):
    return {"plain": 2}[kind]


class AsksACache(WithoutForward):
    """Its cached function is exchanged for another while operations are recorded."""

    @functools.lru_cache  # noqa: B019
    def shift(self):
        return 1

    def on(self):
        self.lin.register_forward_hook(print)

    def forward(self, x):
        return self.run(x * scale_of("plain") + self.shift())


def test_C1_what_is_exchanged_to_record_a_forward_does_not_keep_it_from_ending():
    net = AsksACache()
    net(X)  # fills the caches, which is a change as any other
    extractor = create_feature_extractor(net, ["mul", "add"])
    for _ in range(3):
        with net.lin.register_forward_hook(lambda *_: pytest.fail("went on")):
            features = extractor(X)
        assert torch.equal(features["mul"], X * 2)
        assert torch.equal(features["add"], X * 2 + 1)


def test_C1_a_forward_that_counts_its_calls_for_good_ends_early():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("total", torch.zeros(1))
            self.calls, self.seen = 0, []

        def forward(self, x):
            self.calls += 1
            self.total += 1
            self.seen.append(len(x))
            return self.out(self.lin(x) * 2)

    net = Counts().eval()
    extractor = create_feature_extractor(net, ["mul"])
    extractor(X)
    with net.out.register_forward_hook(lambda *_: pytest.fail("went on")):
        for _ in range(3):
            extractor(X)
    assert (net.calls, net.total.item(), net.seen) == (4, 4.0, [2, 2, 2, 2])


class NormsLate(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.lin(x) + 1)


@pytest.mark.parametrize("names", [["lin"], ["lin", "add"], {nn.Linear}, "l*"])
def test_C1_a_mode_that_fails_on_the_example_ends_early_all_the_same(names):
    # Normalisation of a single sample is an error in train mode, after the last requested node.
    model, x = NormsLate().eval(), torch.ones(1, 4)
    extractor = create_feature_extractor(model, names, example_args=(x,))
    extractor.train()
    if isinstance(names, list):
        assert torch.equal(extractor(x)["lin"], model.lin(x))
    else:
        # What a type or a glob stands for only a whole forward shows.
        with pytest.raises(ValueError, match="more than 1 value"):
            extractor(x)
    assert torch.equal(extractor.eval()(x)["lin"], model.lin(x))


def test_M1_in_a_mode_that_fails_on_the_example_no_parameter_is_left_out():
    # Nobody has seen what runs in it.
    model = NormsLate()
    extractor = create_feature_extractor(
        model,
        train_return_nodes=["norm"],
        eval_return_nodes=["lin"],
        example_args=(torch.ones(1, 4),),
    )
    assert extractor.state_dict().keys() == model.state_dict().keys()


def test_E1_a_name_is_looked_up_in_the_mode_that_runs_on_the_example():
    with pytest.raises(featuretap.NodeNotFoundError, match="'nrom' is no node .*'norm'"):
        create_feature_extractor(NormsLate(), "nrom", example_args=(torch.ones(1, 4),))
