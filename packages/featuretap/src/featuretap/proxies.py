"""Stand-ins that keep in-place statements in place.

Plain :class:`torch.fx.Proxy` turns ``x += y`` into ``x = x + y``, so that other names of the same
tensor keep the old value, and has no ``x[i] = v`` at all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

__all__ = ["FeatureProxy"]

_IN_PLACE = (
    "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift".split()
)


class FeatureProxy(fx.Proxy):
    """A Proxy with augmented assignment and assignment to items."""

    def __getattr__(self, k: str) -> FeatureAttribute:
        return FeatureAttribute(self, k)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class FeatureAttribute(FeatureProxy, fx.proxy.Attribute):
    """An attribute of a stand-in, recorded when it is used as a value."""


def _augmented(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    function = getattr(operator, name)

    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    method.__name__ = f"__{name}__"
    return method


for _name in _IN_PLACE:
    setattr(FeatureProxy, f"__{_name}__", _augmented(_name))
