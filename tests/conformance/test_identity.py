"""Rules V2, E2: questions that a stand-in answers always alike, and sizes read before they change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap

FX_ONLY = pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.part = Part()


class Part(nn.Module):
    """Fx cannot look into it."""

    def forward(self, x):
        return (x, x) if x.sum() > 1e9 else (x, None)


def unpacks_and_asks(self, x):
    y, weights = self.attention(x, x, x, need_weights=False)
    return y * 3 if weights is None else y


def asks_of_an_item(self, x):
    return x * 2 if self.part(x)[1] is None else x


def stores_and_asks(self, x):
    pair = self.part(x)
    second = pair[1]
    return x * 2 if second is None else x


def asks_of_a_function(self, x):
    return x * 2 if torch.equal(x, x) is True else x


def asks_in_a_lambda(self, x):
    return (lambda pair: x * 2 if pair[1] is None else x)(self.part(x))  # noqa: PLC3002


def asks_for_the_dtype(self, x):
    return x * 2 if x.dtype is torch.float32 else x


def asks_for_the_gradient(self, x):
    return x * 2 if x.grad is None else x


def asks_for_a_flag(self, x):
    return x * 2 if x.requires_grad is False else x


def transposes_after_a_look(self, x):
    y = x + 0
    size = y.shape
    y.transpose_(0, 1)
    return x * size[0]


def unsqueezes_after_a_look(self, x):
    y = x + 0
    count = y.ndim
    y.unsqueeze_(0)
    return x * count


def resizes_an_out(self, x):
    out = torch.empty(0)
    torch.add(x, 1, out=out)
    return x * out.shape[0] + out.dim()


def resizes_as(self, x):
    out = torch.zeros(1)
    out.resize_as_(x).fill_(1)
    return x / out.numel()


def exchanges_a_forward(self, x):
    original = self.lin.forward
    self.lin.forward = lambda given: original(given) * 2
    y = self.lin(x)
    del self.lin.forward
    return y + 1


REFUSED = [
    (unpacks_and_asks, "compares with 'is'"),
    (asks_of_an_item, "compares with 'is'"),
    (stores_and_asks, "compares with 'is'"),
    (asks_of_a_function, "compares with 'is'"),
    (asks_in_a_lambda, "compares with 'is'"),
    (asks_for_the_dtype, r"compares \.dtype of a value with 'is'"),
    (asks_for_the_gradient, r"compares \.grad of a value with 'is'"),
    (asks_for_a_flag, r"compares \.requires_grad of a value with 'is'"),
    (transposes_after_a_look, r"transpose_\(\) changes what was read"),
    (unsqueezes_after_a_look, r"unsqueeze_\(\) changes what was read"),
    (resizes_an_out, "reads the size of a tensor that"),
    (resizes_as, "reads the size of a tensor that"),
    (exchanges_a_forward, "sets .forward of 'lin'"),
]


def net(function):
    torch.manual_seed(0)
    return type("Asks", (Net,), {"forward": function})().eval()


@FX_ONLY
@pytest.mark.parametrize(("function", "reason"), REFUSED, ids=lambda v: getattr(v, "__name__", ""))
def test_E2_V2_what_a_stand_in_would_answer_wrong_is_refused(extract, function, reason):
    with pytest.raises(featuretap.UntraceableModelError, match=reason):
        extract(net(function), "")


@pytest.mark.parametrize("function", [function for function, _ in REFUSED])
def test_V2_the_same_inside_a_submodule_is_the_real_value(extract, function):
    model, x = nn.Sequential(net(function), nn.ReLU()).eval(), torch.randn(2, 3, 4)
    assert torch.equal(extract(model, "1")(x)["1"], model(x))


def asks_of_an_argument(self, x, mask=None):
    y, _ = self.attention(x, x, x)
    return y if mask is None else y * mask


def asks_of_what_is_a_tensor(self, x):
    y, _ = self.lstm(x)
    z = None if self.lin is None else y
    return y if z is None else z * 2


def asks_of_a_dtype_for_nothing(self, x):
    return x * 2 if x.dtype is not None and x.shape is not None else x


def transposes_after_a_use(self, x):
    y = x + 0
    rows = y.shape[0]
    y.transpose_(0, 1)
    return y * rows


def writes_an_out(self, x):
    out = torch.zeros(2, 3, 4)
    torch.add(x, 1, out=out)
    return out * 2


ANSWERED = [
    asks_of_an_argument,
    asks_of_what_is_a_tensor,
    asks_of_a_dtype_for_nothing,
    transposes_after_a_use,
    writes_an_out,
]


@pytest.mark.parametrize("function", ANSWERED)
def test_V2_what_a_stand_in_answers_right_is_recorded(extract, function):
    model, x = net(function), torch.randn(2, 3, 4)
    extractor = extract(model, "")
    assert not getattr(extractor, "auto_leaves", {})
    assert torch.equal(extractor(x)[""], model(x))


def test_V1_pieces_that_torch_calls_unsafe_share_memory(extract):
    class Pieces(nn.Module):
        def forward(self, x):
            y = x + 0
            first, second = torch.unsafe_chunk(y, 2)
            y.mul_(10)
            return first + second

    x = torch.arange(8.0).reshape(4, 2)
    features = extract(Pieces(), ["unsafe_chunk", ""])(x)
    assert torch.equal(torch.cat(features["unsafe_chunk"]), x)
    assert torch.equal(features[""], Pieces()(x))


def test_V1_rows_that_an_embedding_scales_do_not_change_a_feature(extract):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(4, 2, max_norm=1.0)
            nn.init.constant_(self.embedding.weight, 3.0)

        def forward(self, x):
            rows = F.relu(self.embedding(x))
            return rows + self.embedding.weight.view(2, 4).sum()

    model = Rows()
    extractor = extract(model, ["view", ""])
    first = extractor(torch.tensor([0]))["view"]
    kept = first.detach().clone()
    extractor(torch.tensor([1, 2]))
    assert torch.equal(first, kept)
