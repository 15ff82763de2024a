"""Rules V2, E2: where a forward goes on if an operation fails, a trace of stand-ins would not know that."""

from __future__ import annotations

import contextlib
import functools
import sys

import pytest
import torch
from torch import nn

import featuretap
from support import drawn, identical
from zoo import linear

FX_ONLY = pytest.mark.only("fx", why="hooks watch what happens")
WRONG = torch.ones(7, 7)
SEEN = []


class Swallows:
    """A context manager that lets nothing out."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return True


class Passes:
    """One that lets everything out, by way of another."""

    def __init__(self):
        self.inner = torch.enable_grad()

    def __enter__(self):
        return self.inner.__enter__()

    def __exit__(self, *error):
        return self.inner.__exit__(*error)


@contextlib.contextmanager
def swallows():
    with contextlib.nullcontext():
        try:
            yield
        except RuntimeError:
            SEEN.append("an error")


@contextlib.contextmanager
def passes():
    try:
        yield
    finally:
        pass


def fails_and_goes_on(x):
    try:
        return x @ WRONG
    except RuntimeError:
        return x * 3


class Net(nn.Module):
    """Each test gives it a forward."""

    def __init__(self, function):
        super().__init__()
        self.lin, self.function = linear(1), function
        self.swallows, self.helpers = Swallows(), {"go on": fails_and_goes_on}

    @property
    def product(self):
        try:
            return self.lin(self.x) @ WRONG
        except RuntimeError:
            return self.lin(self.x) * 3


def bare(self, x):
    try:
        x = x @ WRONG
    except:  # noqa: E722
        x = x * 3
    return x


def in_an_outer_one(self, x):
    try:
        try:
            x = x @ WRONG
        finally:
            x = x + 1
    except RuntimeError:
        x = x * 3
    return x


def returns_at_last(self, x):
    try:
        x = x @ WRONG
    finally:
        return x * 3  # noqa: B012


def goes_on_at_last(self, x):
    for _ in range(2):
        try:
            x = x @ WRONG
        finally:
            continue  # noqa: B012
    return x * 3


def suppresses(self, x):
    with contextlib.suppress(RuntimeError):
        x = x @ WRONG
    return x * 3


def enters_what_swallows(self, x):
    with Swallows():
        x = x @ WRONG
    return x * 3


def enters_an_attribute_that_swallows(self, x):
    with self.swallows:
        x = x @ WRONG
    return x * 3


def enters_a_generator_that_swallows(self, x):
    with swallows():
        x = x @ WRONG
    return x * 3


def calls_what_goes_on(self, x):
    return fails_and_goes_on(x)


def finds_what_goes_on(self, x):
    return functools.partial(self.helpers["go on"])(x)


def asks_a_property(self, x):
    self.x = x
    y = self.product
    del self.x
    return y


def calls_a_function_inside(self, x):
    def inside(y):
        try:
            return y @ WRONG
        except RuntimeError:
            return y * 3

    return inside(x)


def draws_from_a_generator(self, x):
    def products():
        try:
            yield x @ WRONG
        except RuntimeError:
            yield x * 3

    return next(products())


GO_ON = [
    *(bare, in_an_outer_one, returns_at_last, goes_on_at_last, suppresses, enters_what_swallows),
    *(enters_an_attribute_that_swallows, enters_a_generator_that_swallows, calls_what_goes_on),
    *(finds_what_goes_on, asks_a_property, calls_a_function_inside, draws_from_a_generator),
]
if sys.version_info >= (3, 11):
    namespace = {"WRONG": WRONG}
    source = "try:\n  x = x @ WRONG\n except* RuntimeError:\n  x = x * 3\n return x"
    exec(f"def catches_a_group(self, x):\n {source}", namespace)
    GO_ON.append(namespace["catches_a_group"])


def net(function):
    """Let the class have the forward: what an attribute is, no code tells."""
    model = type("Catches", (Net,), {"forward": function})(function)
    return model.eval()


@pytest.mark.parametrize("function", GO_ON, ids=lambda function: function.__name__)
def test_V2_E2_a_forward_that_goes_on_after_an_error_is_not_recorded(backend, function):
    model, x = net(function), drawn(3, 4)
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match="catches exceptions"):
            featuretap.create_feature_extractor(model, "", backend="fx")
    inside = nn.Sequential(model, nn.ReLU())
    extractor = featuretap.create_feature_extractor(inside, ["0", "1"], backend=backend)
    assert identical(dict(extractor(x)), {"0": model(x), "1": inside(x)})


def enters_what_passes(self, x):
    with Passes(), passes(), torch.no_grad():
        return x * 2


def raises_again(self, x):
    try:
        x = x * 2
    except RuntimeError as error:
        raise ValueError("not now") from error
    finally:
        self.note = 1
    return x


def catches_before(self, x):
    def factor():
        try:
            return {}["factor"]
        except KeyError:
            return 2

    return x * factor()


@FX_ONLY
@pytest.mark.parametrize("function", [enters_what_passes, raises_again, catches_before])
def test_V2_what_lets_errors_out_is_recorded(extract, function):
    model, x = net(function), drawn(3, 4)
    assert identical(extract(model, "mul")(x)["mul"], x * 2)


def takes_the_least(self, x):
    return x.clamp(min=torch.finfo(x.dtype).min / 1e38)


def takes_the_greatest(self, x):
    return x * torch.iinfo(x.dtype).max


@pytest.mark.parametrize(
    ("function", "dtype"), [(takes_the_least, torch.float32), (takes_the_greatest, torch.int32)]
)
def test_V2_E2_limits_of_a_dtype_that_is_not_known_are_refused(backend, function, dtype):
    model, x = net(function), torch.ones(2, 4, dtype=dtype)
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match=r"asks torch\.[fi]info\(\)"):
            featuretap.create_feature_extractor(model, "", backend="fx")
    inside = nn.Sequential(model, nn.ReLU())
    extractor = featuretap.create_feature_extractor(inside, ["0"], backend=backend)
    assert identical(extractor(x)["0"], model(x))
