"""What is particular to watching the real forward."""

from __future__ import annotations

import io
import threading

import pytest
import torch
from torch import nn

import featuretap
import featuretap_hooks
from support import drawn, identical, snapshot
from zoo import NestedScopes, ReusedModules

create = featuretap_hooks.create_feature_extractor
X = drawn(2, 4)
OTHERS_ON = torch._C._len_torch_function_stack()  # a default device is one


def modes_on() -> int:
    return torch._C._len_torch_function_stack() - OTHERS_ON


class Probe(nn.Module):
    """Notes how it is watched."""

    def forward(self, x):
        self.seen = (modes_on(), len(self._forward_hooks) + len(self._forward_pre_hooks))
        return x * 1


def test_C4_module_outputs_need_one_plain_hook_each_and_no_mode():
    model = nn.Sequential(Probe(), Probe(), nn.Linear(4, 4))
    extractor = create(model, ["1"])
    extractor(X)
    extractor(X)
    assert model[0].seen == (0, 0)
    assert model[1].seen == (0, 1)


def test_C4_operations_are_watched_in_their_scopes_only():
    model = nn.Sequential(Probe(), Probe(), nn.Linear(4, 4))
    extractor = create(model, ["1.mul", "2"])
    extractor(X)
    assert identical(extractor(X)["1.mul"], X)
    assert model[0].seen == (0, 0)
    assert model[1].seen[0] == 1


def test_M5_trap31_hooks_are_gone_after_a_call_and_after_every_exception():
    class Fails(nn.Module):
        def forward(self, x):
            if x.sum() > 1000:
                raise self.error
            return x + 1

    model = nn.Sequential(NestedScopes(), Fails(), nn.ReLU())
    extractor = create(model, ["0.mul", "0.stage", "2"])
    extractor(X)
    before = snapshot(model)
    for error in (ValueError("no"), KeyboardInterrupt(), MemoryError()):
        model[1].error = error
        with pytest.raises(type(error)):
            extractor(X * 1e6)
        del model[1].error
        assert snapshot(model)[:-2] == before[:-2]
        assert modes_on() == 0
    assert identical(extractor(X)["0.mul"], model[0](X))


def test_C1_trap43_a_models_own_except_does_not_swallow_the_early_stop():
    ran = []

    class Swallows(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            try:
                x = self.lin(x)
            except Exception:
                ran.append("except")
            ran.append("after")
            return x

    model = Swallows()
    assert identical(create(model, "lin")(X)["lin"], model.lin(X))
    assert not ran
    create(model, "lin", early_stop=False)(X)
    assert ran == ["after"]


def test_C1_trap41_the_stop_does_not_depend_on_the_order_of_the_request():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Probe())
    assert list(create(model, ["1", "0"])(X)) == ["0", "1"]
    assert not hasattr(model[2], "seen")


def test_V5_trap40_a_node_that_was_not_reached_is_an_error_that_names_the_nearest():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.often, self.seldom = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.often(x)
            return self.seldom(x) if x.sum() > 1e6 else x

    model = Sometimes()
    with pytest.raises(featuretap.NodeNotReachedError, match=r"did not reach 'seldom'") as caught:
        create(model, ["often", "seldom"])(X)
    assert isinstance(caught.value, featuretap.NodeNotFoundError)
    assert caught.value.name == "seldom"
    assert list(create(model, ["often", "seldom"], missing="skip")(X)) == ["often"]
    with pytest.raises(ValueError, match="missing must be 'error' or 'skip'"):
        create(model, "often", missing="ignore")


def test_V5_a_module_that_the_example_does_not_reach_is_a_module_all_the_same():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))

        def forward(self, x):
            return (self.a(x) if x.sum() > 0 else self.b(x)).relu()

    model, x = Either(), torch.ones(2, 4)
    for node in ("b", "b.0"):
        with pytest.raises(featuretap.NodeNotReachedError, match=f"did not reach '{node}'"):
            create(model, ["a", node], example_args=(x,))
        extractor = create(model, ["a", node], missing="skip", example_args=(x,))
        assert list(dict(extractor.named_parameters())) == list(dict(model.named_parameters()))
        for _ in range(2):
            assert list(extractor(x)) == ["a"]
            assert identical(extractor(-x)[node], model.b(-x))
    with pytest.raises(featuretap.NodeNotFoundError, match="'c' is no node of the model"):
        create(model, ["c"], missing="skip", example_args=(x,))


def test_V1_a_value_overwritten_behind_torchs_back_is_right_from_the_first_call():
    x = X.cpu()

    class Numpy(nn.Module):
        def forward(self, x):
            y = x * 2
            y.detach().numpy()[:] = 7
            return y + 1

    extractor = create(Numpy(), ["mul", ""])
    for _ in range(3):
        assert identical(extractor(x)["mul"], x * 2)


def test_V1_a_module_exchanged_after_creation_is_the_one_that_is_watched():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    extractor = create(model, ["0", "1"])
    extractor(X)
    model[0] = nn.Sequential(model[0], nn.Tanh())
    assert identical(extractor(X)["0"], model[0](X))


def test_V1_an_attention_layer_takes_its_fused_path_as_in_the_model():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 16), layer, nn.Linear(16, 16)).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = model[1](model[0](x))
        extractor = create(model, ["0", "1", "2"])
        for _ in range(2):
            assert identical(extractor(x)["1"], expected)
    assert "forward" not in vars(layer)


def test_M1_the_extractor_passes_for_the_model():
    model = ReusedModules()
    model.note = "mine"
    extractor = create(model, "block")
    assert isinstance(extractor, ReusedModules)
    assert extractor.note == "mine"
    assert extractor.state_dict().keys() == model.state_dict().keys()
    (x,) = model.example()
    assert extractor.reference(x).keys() == model.reference(x).keys()


def test_M4_another_thread_uses_the_model_while_it_is_watched():
    inside, go_on = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x):
            if threading.current_thread().name == "watched":
                inside.set()
                go_on.wait(10)
            return x + 1

    model = nn.Sequential(nn.Linear(4, 4), Waits(), nn.Linear(4, 4))
    extractor = create(model, ["1.add", "2"])
    extractor(X)
    found = {}
    thread = threading.Thread(target=lambda: found.update(extractor(X)), name="watched")
    thread.start()
    assert inside.wait(10)
    expected = model(X * 2)
    go_on.set()
    thread.join()
    assert identical(found["2"], model(X))
    assert identical(model(X * 2), expected)


def test_V1_a_value_that_an_operation_wrote_without_changing_it_is_copied_from_then_on():
    class Clamps(nn.Module):
        def forward(self, x):
            y = x * 2
            y.clamp_(max=10)
            return y + 1

    extractor = create(Clamps(), ["mul", "add"])
    assert identical(extractor(X)["mul"], X * 2)
    assert identical(extractor(X * 100)["mul"], X * 200)


class DumpsATensor(nn.Module):
    """For later, and to be read again at once."""

    def __init__(self):
        super().__init__()
        self.lin, self.files = nn.Linear(4, 4), []

    def forward(self, x):
        y = self.lin(x)
        file = io.BytesIO()
        torch.save(y.detach(), file)
        self.files.append(file.getvalue())
        file.seek(0)
        return torch.load(file) * 2 + y


def test_V2_a_file_that_the_forward_writes_is_as_the_model_writes_it():
    model, x = DumpsATensor(), torch.ones(2, 4)
    expected = model(x)
    names = featuretap_hooks.get_graph_node_names(model, example_args=(x,))
    assert names == ["x", "lin", "detach", "add"]
    extractor = create(model, ["lin", "add"])
    for _ in range(3):
        assert identical(extractor(x)["add"], expected)
    tensors = [torch.load(io.BytesIO(file)) for file in model.files]
    assert all(identical(tensor, model.lin(x).detach()) for tensor in tensors)


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch without torch.func")
def test_N8_what_vmap_looks_at_itself_is_no_node():
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            return torch.func.vmap(lambda row: self.lin(row) * 2)(x.sin()) + 1

    model, x = Maps(), torch.ones(2, 4)
    assert featuretap_hooks.get_graph_node_names(model, example_args=(x,)) == ["x", "sin", "add"]
    for example in (None, (x,)):
        features = create(model, ["sin", "add"], example_args=example)(x)
        assert identical(features["sin"], x.sin())
        assert torch.allclose(features["add"], model(x))
