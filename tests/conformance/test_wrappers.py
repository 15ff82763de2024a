"""Rules M4 and N: models in wrappers, extractors in wrappers, and models of other kinds."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import featuretap
from support import copied, drawn, identical, module_outputs
from zoo import ZOO, NestedScopes, linear

X = drawn(2, 4)
NODES = ["stage.0.lin", "stage.1.act", "stage", "mul"]
# Torch 2.0 never stops.
EARLY_STOP = getattr(
    torch.utils.checkpoint, "set_checkpoint_early_stop", lambda _: contextlib.nullcontext()
)


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


WRAPPERS = {
    "compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "compile of DDP": lambda model: torch.compile(
        nn.parallel.DistributedDataParallel(model), backend="eager"
    ),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_M4_N_a_wrapped_model_is_looked_through(names_of, extract, device, wrapper):
    if wrapper == "DataParallel" and torch.cuda.is_available():
        device = "cuda"  # it calls for one, wherever there is one
    x = X.to(device)
    model = NestedScopes().eval().to(device)
    wrapped = WRAPPERS[wrapper](model).eval()
    example = {"example_args": (x,)}
    assert names_of(wrapped, **example) == names_of(model, **example)
    extractor = extract(wrapped, NODES, **example)
    assert extractor.state_dict().keys() == model.state_dict().keys()
    features = extractor(x)
    assert identical(features["mul"], wrapped(x))
    assert identical(features["stage.0.lin"], model.stage[0].lin(x))
    assert featuretap.verify(extractor, wrapped, x).equal


def test_M4_a_replica_of_data_parallel_leaves_the_extractor_alone(extract, backend):
    model = NestedScopes().eval()
    extractor = extract(model, ["stage.0.lin", "mul"])
    expected = copied(dict(extractor(X)))
    if backend == "hooks":
        with pytest.raises(RuntimeError, match="DistributedDataParallel, or an extractor of fx"):
            extractor._replicate_for_data_parallel()
        return
    replica = extractor._replicate_for_data_parallel()
    replica._modules["stage"] = copy.deepcopy(model.stage)
    with torch.no_grad():
        replica.stage[0].lin.weight.add_(1)
    assert identical(copied(dict(extractor(X))), expected)
    assert identical(replica(X)["stage.0.lin"], replica.stage[0].lin(X))
    assert all(a is b for a, b in zip(extractor.parameters(), model.parameters(), strict=True))


def run_two(worker, backend, tmp_path):
    """Run a worker in two processes that find each other in a file."""
    command = [sys.executable, str(Path(__file__).with_name(worker)), backend]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")]) for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_M4_trap35_ddp_with_default_settings_on_two_processes(backend, tmp_path):
    run_two("ddp_worker.py", backend, tmp_path)


@pytest.mark.skipif(
    not hasattr(getattr(torch.cpu, "Stream", None), "record_event"),
    reason="FSDP2 runs without a GPU since torch 2.7",
)
def test_M4_fsdp2_on_two_processes(backend, tmp_path):
    """A sharded model as input; and, for fx, an extractor that is sharded."""
    run_two("fsdp_worker.py", backend, tmp_path)


def test_M4_functional_call_and_grad(extract):
    model = NestedScopes()
    extractor = extract(model, "stage")
    (x,) = model.example()
    parameters = {name: p.detach() * 2 for name, p in extractor.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(extractor, parameters, (x,))["stage"].sum()

    def real(parameters):
        return torch.func.functional_call(model, parameters, (x,)).sum() / 2

    ours, theirs = torch.func.grad(loss)(parameters), torch.func.grad(real)(parameters)
    assert identical(ours, theirs)


@pytest.mark.parametrize("name", ["NestedScopes", "InPlaceModule", "FrozenStatistics"])
@pytest.mark.parametrize("with_example", [False, True])
def test_M4_vmap_over_inputs(extract, name, with_example):
    """Batched like the model itself."""
    model = ZOO[name]().eval()
    extractor = extract(model, "", **{"example_args": model.example()} if with_example else {})
    x = torch.randn(3, *model.shape)
    assert identical(torch.vmap(lambda x: extractor(x)[""])(x), torch.vmap(model)(x))


@pytest.mark.parametrize("name", ["NestedScopes", "InPlaceModule", "FrozenStatistics"])
@pytest.mark.parametrize("with_example", [False, True])
def test_M4_vmap_over_an_ensemble(extract, name, with_example):
    """Parameters and buffers are stacked, also in the first call of all."""
    model = ZOO[name]().eval()
    extractor = extract(model, "", **{"example_args": model.example()} if with_example else {})
    x = torch.randn(3, *model.shape)
    members = [copy.deepcopy(model) for _ in range(3)]
    with torch.no_grad():
        for number, member in enumerate(members):
            for parameter in member.parameters():
                parameter.mul_(number + 1)
    parameters, buffers = torch.func.stack_module_state(members)

    def ours(parameters, buffers):
        return torch.func.functional_call(extractor, (parameters, buffers), (x[0],))[""]

    def theirs(parameters, buffers):
        return torch.func.functional_call(model, (parameters, buffers), (x[0],))

    assert identical(
        copied(torch.vmap(ours)(parameters, buffers)),
        copied(torch.vmap(theirs)(parameters, buffers)),
    )


@pytest.mark.filterwarnings("ignore:`torch.cpu.amp.autocast:FutureWarning")  # torch 2.4's own
@pytest.mark.parametrize("early_stop", [False, True])
def test_M5_a_checkpoint_around_the_extractor_counts_batches_as_around_the_model(
    extract, early_stop
):
    """The backward runs it again, and stops when it has what it needs: that is no failure."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    other = copy.deepcopy(model)
    extractor = extract(other, "", example_args=(X.clone(),))
    with EARLY_STOP(early_stop):
        for run in (model, lambda x: extractor(x)[""]):
            x = X.clone().requires_grad_()
            torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False).sum().backward()
    assert model[1].num_batches_tracked == 2
    assert identical(dict(other.state_dict()), dict(model.state_dict()))
    gradients = [[p.grad for p in one.parameters()] for one in (model, other)]
    assert identical(*gradients)


@pytest.mark.skipif(not hasattr(nn.Module, "compile"), reason="models compile since torch 2.2")
def test_M4_a_model_that_is_compiled_in_place_is_looked_through(backend, extract):
    model = NestedScopes().eval()
    names = featuretap.get_graph_node_names(model, backend=backend, example_args=model.example())
    model.compile(backend="eager")
    assert names == featuretap.get_graph_node_names(
        model, backend=backend, example_args=model.example()
    )
    assert identical(extract(model, "mul")(X)["mul"], copy.deepcopy(model)(X))


@pytest.mark.parametrize("name", ["NestedScopes", "AutocastIsland", "InPlaceModule"])
def test_M4_autocast_around_the_call_is_as_around_the_model(extract, name):
    model = ZOO[name]().eval()
    extractor = extract(model, "", example_args=model.example())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert identical(extractor(X)[""], model(X))
    assert identical(extractor(X)[""], model(X))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made_inside = extract(model, "")
    assert identical(made_inside(X)[""], model(X))


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, by one category or another
        return nn.utils.weight_norm(layer)


def pruned(layer):
    from torch.nn.utils import prune

    return prune.l1_unstructured(layer, "weight", 0.5)


REPARAMETRIZED = {
    "parametrizations.weight_norm": lambda layer: nn.utils.parametrizations.weight_norm(layer),
    "parametrizations.spectral_norm": nn.utils.parametrizations.spectral_norm,
    "parametrizations.orthogonal": nn.utils.parametrizations.orthogonal,
    "weight_norm": old_weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "pruned": pruned,
}


@pytest.mark.skipif(not hasattr(nn.utils.parametrizations, "weight_norm"), reason="since torch 2.1")
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", REPARAMETRIZED)
def test_V1_M5_trap28_reparametrized_weights(extract, kind, mode):
    """Each call computes the weight anew, and no stand-in stays on the module."""
    model, twin = (
        nn.Sequential(REPARAMETRIZED[kind](linear(1)), nn.ReLU(inplace=True)) for _ in range(2)
    )
    twin.load_state_dict(model.state_dict())
    for one in (model, twin):
        one.train(mode == "train")
    extractor = extract(model, ["0", "1"])
    for _ in range(2):
        with torch.no_grad():
            for tensors in zip(model.parameters(), twin.parameters(), strict=True):
                for tensor in tensors:
                    tensor.mul_(1.5)
        features = extractor(X)
        real = copied(twin[0](X))
        assert identical(copied(features["0"]), real)
        assert identical(copied(features["1"]), real.relu())
        assert identical(copied(model.state_dict()), copied(twin.state_dict()))
    assert isinstance(model[0].weight, torch.Tensor)


class Quantizable(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = (
            torch.ao.quantization.QuantStub(),
            torch.ao.quantization.DeQuantStub(),
        )
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.skip = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x):
        y = self.relu(self.conv(self.quant(x)))
        return self.dequant(self.skip.add(y, y))


@pytest.fixture
def engine():
    before = torch.backends.quantized.engine
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this machine has no fbgemm")
    torch.backends.quantized.engine = "fbgemm"
    yield "fbgemm"
    torch.backends.quantized.engine = before


def quantized(engine, how):
    """A model that torch quantized, as its tutorials do."""
    ao, x = torch.ao.quantization, torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Quantizable().eval()
        if how == "dynamic":
            return ao.quantize_dynamic(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), {nn.Linear}), x
        if how == "eager":
            model.qconfig = ao.get_default_qconfig(engine)
            ready = ao.prepare(model)
            ready(x)
            return ao.convert(ready), x
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
        ready = prepare_fx(net, ao.get_default_qconfig_mapping(engine), (x,))
        ready(x)
        return convert_fx(ready), x


@pytest.mark.filterwarnings("ignore:.*(deprecated|TypedStorage):UserWarning")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["eager", "fx", "dynamic"])
@pytest.mark.usefixtures("on_the_cpu")
def test_V1_quantized_models(extract, names_of, engine, how):
    model, x = quantized(engine, how)
    listed = names_of(model, example_args=(x,), suppress_diff_warning=True)
    real = module_outputs(model, x)
    modules = [path for path, call in real if path and call == 0 and path in listed]
    assert modules
    features = extract(model, [*modules, ""], suppress_diff_warning=True)(x)
    for name in modules:
        ours, theirs = features[name], real[name, 0]
        assert ours.dtype == theirs.dtype
        if ours.is_quantized:
            ours, theirs = ours.int_repr(), theirs.int_repr()
        assert identical(ours, theirs), name
    assert identical(features[""], model(x))


@pytest.mark.parametrize("name", ["NestedScopes", "InPlaceModule", "Attention", "Sizes"])
@pytest.mark.usefixtures("on_the_cpu")
def test_M4_meta_and_fake_tensors_have_shapes_and_no_values(extract, name):
    model = ZOO[name]().eval()
    names = [key for key in model.reference(*model.example()) if key]
    expected = {key: value for key, value in model.reference(*model.example()).items() if key}
    meta = copy.deepcopy(model).to("meta")
    features = extract(meta, names)(torch.empty(model.shape, device="meta"))
    for key, value in features.items():
        if isinstance(value, torch.Tensor):
            assert (value.shape, value.device.type) == (expected[key].shape, "meta")
    with FakeTensorMode():
        features = extract(ZOO[name]().eval(), names)(torch.empty(model.shape))
    for key, value in features.items():
        if isinstance(value, torch.Tensor):
            assert (value.shape, value.device.type) == (expected[key].shape, "cpu")


class DropsWhileTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.dropout(self.lin(x), 0.5, self.training)


@pytest.mark.skipif(not hasattr(nn.Module, "compile"), reason="models compile since torch 2.2")
def test_M2_M5_a_compiled_child_keeps_the_flag_of_what_was_compiled(extract):
    model = nn.Sequential(torch.compile(DropsWhileTraining(), backend="eager"), nn.ReLU()).eval()
    real = model(X)
    extractor = extract(model, ["0", ""])
    for _ in range(2):
        assert identical(extractor.eval()(X)[""], real)
        assert not model[0]._orig_mod.training
        assert identical(model(X), real)
        extractor.train()
        assert model[0]._orig_mod.training
