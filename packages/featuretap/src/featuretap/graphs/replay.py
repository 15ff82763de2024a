"""Trace an extractor by recording its graph again, so that its names survive.

The generated forward of an extractor has no modules around its operations any more; tracing it
would name all of them by the root.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import fx

from ..modules import stored_tensor
from ..naming import join
from . import meta_keys
from .structures import freeze, map_nodes

if TYPE_CHECKING:
    import inspect

    from ..extractor import FeatureExtractor
    from ..tracing import FeatureTracer

__all__ = ["replay"]


def replay(
    extractor: FeatureExtractor,
    signature: inspect.Signature,
    tracer: FeatureTracer,
    path: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> OrderedDict[str, Any]:
    """Record the nodes of ``extractor``, which stands at ``path``, under the names they have."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    values: dict[fx.Node, Any] = {}
    result: OrderedDict[str, Any] = OrderedDict()
    for node in extractor.graph.nodes:
        if node.op == "placeholder":
            values[node] = bound.arguments[node.target]
        elif node.op == "output":
            result = OrderedDict(fx.node.map_arg(node.args[0], values.__getitem__))
        else:
            values[node] = _record(node, path, values, extractor, tracer)
        for module_path, value in node.meta.get(meta_keys.CALLS, ()):
            returned = freeze(map_nodes(value, values.__getitem__), tracer.real.node)
            call = tracer.recording.begin_call(join(path, module_path))
            tracer.recording.end_call(call, returned)
    return result


def _record(
    node: fx.Node,
    path: str,
    values: dict[fx.Node, Any],
    extractor: FeatureExtractor,
    tracer: FeatureTracer,
) -> fx.Proxy:
    target: Any = node.target
    if node.op == "get_attr":
        holder, _, name = target.rpartition(".")
        tensor = stored_tensor(extractor.get_submodule(holder), name)
        return tracer.proxy(tracer.real.node(tensor))
    if node.op == "call_module":
        module = extractor.get_submodule(target)
        target = tracer.recording.tree.path_of(module) or join(path, target)
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    scope = join(path, node.meta.get(meta_keys.SCOPE, ""))
    with tracer.place.at(scope, node.meta.get(meta_keys.REGIONS, ())):
        proxy = tracer.create_proxy(node.op, target, args, kwargs)
    if meta_keys.NAME in node.meta:
        proxy.node.meta[meta_keys.GIVEN_NAME] = join(path, node.meta[meta_keys.NAME])
    return proxy
