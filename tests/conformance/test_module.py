"""Rules M1 to M4: the extractor is a good module."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn

from support import copied, identical, snapshot
from zoo import ZOO, DynamicInside, NestedScopes, TrainEvalBranch, linear

# The default since torch 2.7; the other way, older versions write paths as dynamo reads them.
_EXPORT = inspect.signature(torch.export.export).parameters if hasattr(torch, "export") else {}
NOT_STRICT = {"strict": False} if "strict" in _EXPORT else {}


def test_M1_parameters_are_the_models_own_under_the_models_names(extract, device):
    model = NestedScopes().to(device)
    example = tuple(argument.to(device) for argument in model.example())
    extractor = extract(model, "stage.0.lin", example_args=example)
    own = dict(model.named_parameters())
    mine = dict(extractor.named_parameters())
    assert mine.keys() == {"stage.0.lin.weight", "stage.0.lin.bias"}
    assert all(mine[name] is own[name] for name in mine)


@pytest.mark.parametrize("name", ZOO)
def test_M1_state_dict_keys_are_a_subset_of_the_models(extract, name):
    model = ZOO[name]()
    assert extract(model, "").state_dict().keys() <= model.state_dict().keys()


def test_M2_train_and_eval_switch_graphs(extract):
    model = TrainEvalBranch().train()
    extractor = extract(model, ["inner"])
    (x,) = model.example()
    assert identical(extractor(x)["inner"], x * 2)
    assert identical(extractor.eval()(x)["inner"], x - 2)
    assert identical(extractor.train()(x)["inner"], x * 2)


def test_M2_trap24_a_frozen_submodule_stays_frozen(extract):
    model = TrainEvalBranch().train()
    model.inner.eval()
    (x,) = model.example()
    extractor = extract(model, "inner")
    assert identical(extractor(x)["inner"], x - 2)


def test_M2_trap24_a_custom_train_method_is_respected(extract):
    class FrozenNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.lin = nn.BatchNorm1d(4), nn.Linear(4, 4)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

        def forward(self, x):
            return self.lin(self.norm(x))

    model = FrozenNorm().train()
    extractor = extract(model, "lin").eval().train()
    x = torch.randn(3, 4)
    assert identical(extractor(x)["lin"], model(x))
    assert int(model.norm.num_batches_tracked) == 0


class MakesConstants(nn.Module):
    """Constants with the dtype and device of something in the model."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        a = torch.arange(4, dtype=self.lin.weight.dtype, device=self.lin.weight.device)
        b = torch.full((4,), 0.3, dtype=self.scale.dtype, device=self.scale.device)
        return self.lin(x) + a + b * torch.tensor([0.1, 0.2, 0.3, 0.4]).to(self.scale)


def test_M2_trap23_constants_follow_the_dtype_of_the_model(extract):
    model = MakesConstants()
    extractor = extract(model, ["add", "add_1"])
    model.double()
    x = torch.rand(2, 4).double()
    assert identical(extractor(x)["add_1"], model(x))


def test_M2_trap23_half_reaches_parameters_and_follows_in_the_features(extract):
    model = NestedScopes()
    extractor = extract(model, "stage").to(torch.float64)
    x = model.example()[0].double()
    assert identical(extractor(x)["stage"], model(x) / 2)


@pytest.mark.parametrize(
    "name", ["NestedScopes", "InPlaceModule", "Attention", "TrainEvalBranch", "FrozenBackbone"]
)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_M3_trap32_copies_keep_both_modes(extract, name, how):
    model = ZOO[name]().train()
    extractor = extract(model, "")
    if how == "deepcopy":
        twin = copy.deepcopy(extractor)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(extractor))
    else:
        buffer = io.BytesIO()
        torch.save(extractor, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    args = model.example()
    for mode in (True, False, True):
        torch.manual_seed(0)
        expected = copied(model.train(mode)(*args))
        torch.manual_seed(0)
        assert identical(twin.train(mode)(*args)[""], expected)
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in model.parameters())


@pytest.mark.skipif(
    not hasattr(torch, "compiler"), reason="dynamo makes an OrderedDict: since torch 2.1"
)
@pytest.mark.parametrize("name", ["NestedScopes", "InPlaceModule", "OverwrittenOutput"])
def test_M4_trap36_torch_compile_takes_the_whole_extractor(extract, name):
    model = ZOO[name]().eval()
    extractor = extract(model, "")
    args = model.example()
    compiled = torch.compile(extractor, fullgraph=True, backend="eager")
    assert identical(compiled(*args)[""], model(*args))


@pytest.mark.skipif(
    not hasattr(torch, "compiler"), reason="dynamo makes an OrderedDict: since torch 2.1"
)
def test_M4_as_many_extractors_as_one_likes_are_compiled(extract):
    """Dynamo compiles one piece of code for eight callers, and then gives up."""
    for width in range(1, 11):
        model = nn.Sequential(nn.Linear(width, 4), nn.ReLU())
        x = torch.ones(2, width)
        compiled = torch.compile(extract(model, "0"), fullgraph=True, backend="eager")
        assert identical(compiled(x)["0"], model[0](x))


def test_M4_trap34_a_compiled_extractor_follows_train_and_eval(extract):
    model = TrainEvalBranch().train()
    compiled = torch.compile(extract(model, "inner"), backend="eager")
    (x,) = model.example()
    assert identical(compiled(x)["inner"], x * 2)
    compiled.eval()
    assert identical(compiled(x)["inner"], x - 2)


class FreezesItself(nn.Module):
    """Keeps its norm in eval mode, and its layer without gradients while it is trained."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm = linear(), nn.BatchNorm1d(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        self.lin.requires_grad_(not mode)
        return self

    def forward(self, x):
        return self.norm(self.lin(x))


@pytest.mark.parametrize("switched", [True, False, None])
def test_M2_M5_a_train_method_that_freezes_is_respected_and_leaves_nothing(
    extract, names_of, switched
):
    model, x = FreezesItself(), torch.randn(3, 4)
    if switched is not None:
        model.train(switched)
    before = snapshot(model)
    names_of(model, example_args=(x,))
    extractor = extract(model, ["lin", ""], example_args=(x,))
    assert snapshot(model) == before
    real = copy.deepcopy(model)
    for mode in (True, False, True):
        real.train(mode)
        extractor.train(mode)
        assert identical(extractor(x)[""], real(x))
        assert not model.norm.training
        assert model.norm.num_batches_tracked == 0


def paths_in(program):
    stacks = [node.meta.get("nn_module_stack") or {} for node in program.graph.nodes]
    return {path for stack in stacks for path, _ in stack.values()}


# What torch 2.6 says of the model itself, which is no submodule of a hooks extractor; of no other module.
@pytest.mark.filterwarnings("ignore:Unable to find the path of the module InPlaceModule")
@pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export: since torch 2.1")
def test_M4_trap38_torch_export_of_one_mode_keeps_module_paths(extract):
    model = ZOO["InPlaceModule"]().eval()
    args = model.example()
    extractor = extract(model, ["lin", "add"], example_args=args)
    program = torch.export.export(extractor, args, **NOT_STRICT)
    # Before torch 2.4 only strict export keeps paths, and writes them as dynamo reads them.
    paths = paths_in(program) or paths_in(torch.export.export(extractor, args))
    assert identical(program.module()(*args)["add"], model(*args))
    assert not paths.isdisjoint({"lin", "L['self']._modules['lin']"})


def test_M4_several_threads_call_one_extractor(extract):
    model = ZOO["InPlaceModule"]()
    extractor = extract(model, ["lin", "add"])
    inputs = [torch.randn(2, 4) for _ in range(8)]
    results: dict[int, object] = {}

    def work(index):
        for _ in range(20):
            results[index] = extractor(inputs[index])["add"]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(identical(results[index], model(inputs[index])) for index in range(8))


def test_M4_trap30_other_threads_run_other_models_while_one_lists(names_of):
    other = NestedScopes()
    (x,) = other.example()
    expected = other(x)
    stop = threading.Event()
    failures: list[BaseException] = []

    def infer():
        while not stop.is_set():
            try:
                assert identical(other(x), expected)
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=infer)
    thread.start()
    try:
        for _ in range(30):
            names_of(DynamicInside())
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_API_the_extractor_has_the_signature_of_the_model(extract):
    model = ZOO["OptionalArgument"]()
    extractor = extract(model, "mul")
    names = list(inspect.signature(extractor.forward).parameters)
    assert names == ["x", "mask", "scale", "flag"]
    x = torch.ones(2)
    assert identical(extractor(x, scale=3.0), OrderedDict(mul=x * 3.0))
    assert identical(extractor(x=x, mask=None), OrderedDict(mul=x * 2.0))


def test_API_trap37_fixed_arguments_may_be_passed_if_equal(backend, extract):
    model = ZOO["OptionalArgument"]()
    extractor = extract(model, "", concrete_args={"flag": True})
    x = torch.ones(2)
    assert identical(extractor(x, flag=True)[""], model(x, flag=True))
    if backend != "fx":  # the real forward takes any value
        assert identical(extractor(x, flag=False)[""], model(x, flag=False))
        return
    with pytest.raises(ValueError, match=r"made for flag=True .* flag=False"):
        extractor(x, flag=False)
    with pytest.raises(ValueError, match=r"made for mask=None .* mask=a tensor of shape \(2,\):"):
        extractor(x, torch.ones(2) > 0, flag=True)


class InTwoPlaces(nn.Module):
    """Has one layer under two names, and a weight that two layers share."""

    def __init__(self):
        super().__init__()
        self.first = linear(1)
        self.second, self.head = self.first, linear(2)
        self.head.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x)))


def test_M1_a_module_in_two_places_is_in_both(extract):
    model = InTwoPlaces()
    extractor = extract(model, "")
    assert extractor.state_dict().keys() == model.state_dict().keys()
    extractor.load_state_dict(model.state_dict())
    assert extractor.second is model.first
    assert "second.weight" not in dict(extractor.named_parameters())


def test_M2_a_dtype_change_of_the_model_reaches_the_extractor_and_back(extract):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.register_buffer("scale", torch.ones(4))

        def forward(self, x):
            return self.lin(x) * self.scale

    model = Scale()
    extractor = extract(model, "mul")
    model.double()
    assert extractor(torch.ones(1, 4).double())["mul"].dtype is torch.float64
    assert dict(extractor.named_buffers())["scale"] is model.scale
    extractor.float()
    assert model.scale.dtype is model.lin.weight.dtype is torch.float32


class HasOneModeAlone(nn.Module):
    """As what ``torch.export`` makes."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.train = self.eval = self.refuse

    def refuse(self, mode=True):
        raise NotImplementedError("Calling train() is not supported yet.")

    def forward(self, x):
        return self.lin(x).sin()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("example", [False, True])
def test_M2_a_part_that_has_one_mode_alone_is_served_in_that(extract, names_of, inside, example):
    part, x = HasOneModeAlone(), torch.rand(2, 4)
    model = nn.Sequential(nn.Linear(4, 4), part) if inside else part
    given = (x,) if example else None
    name = "1.sin" if inside else "sin"
    assert name in names_of(model, None, True, example_args=(x,)).train
    assert identical(extract(model, [name], example_args=given)(x)[name], model(x))
    assert all(module.training for module in model.modules())
