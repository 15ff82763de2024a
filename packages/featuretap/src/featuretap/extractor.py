"""The module that returns features: two graphs, one compiled forward, the model's own parameters."""

from __future__ import annotations

import copy
import inspect
import types
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import fx, nn

from ._compat import ends_recomputation, is_compiling, no_torch_function
from .backends import Options
from .copying import copy_value
from .graphs import meta_keys
from .graphs.codegen import compile_forward
from .graphs.replay import replay
from .graphs.serialization import graph_from_state, graph_to_state
from .keeping.undo import Moves, Moving, Undo

__all__ = ["ExtractorParts", "FeatureExtractor", "Followed"]


@dataclass
class ExtractorParts:
    """What an extractor is made of, for the modes ``"train"`` and ``"eval"``.

    Attributes:
        class_name: of the model.
        signature: of its forward; what was fixed may be left out.
        graphs: the graph of each mode, or the reason why there is none.
        return_nodes: for each mode, node name -> output key.
        fixed: for each mode, the arguments that were fixed when tracing.
        flag_exceptions: for each mode, paths of the modules whose ``training`` flag is the opposite.
        auto_leaves: path of each module that became a leaf by itself -> why.
        moves: for each mode, what a call may change.
        converts_itself: whether the model has an ``_apply`` of its own.

    """

    class_name: str
    signature: inspect.Signature
    graphs: dict[str, fx.Graph | str]
    return_nodes: dict[str, dict[str, str]]
    fixed: dict[str, dict[str, Any]] = field(default_factory=lambda: {"train": {}, "eval": {}})
    flag_exceptions: dict[str, list[str]] = field(default_factory=lambda: {"train": [], "eval": []})
    auto_leaves: dict[str, str] = field(default_factory=dict)
    moves: dict[str, Moves] = field(default_factory=lambda: {"train": Moves(), "eval": Moves()})
    converts_itself: bool = False


class Followed:
    """A parameter of the extractor that is the model's, also after the model was given another.

    Args:
        own: the registry of the extractor that it is in.
        module: the module of the model that it belongs to.
        name: its name in both.

    """

    __slots__ = ("_module", "_name", "_own", "_tensor")

    def __init__(self, own: dict[str, Any], module: weakref.ref[nn.Module], name: str) -> None:
        self._own, self._module, self._name = own, module, name
        self._tensor = own[name]

    def follow(self) -> None:
        """Take over what the model has now, unless the extractor was given something of its own.

        Raises:
            RuntimeError: if the model computes it now, or has it no more.

        """
        module = self._module()
        if module is None or self._own.get(self._name) is not self._tensor:
            return
        tensor = module._parameters.get(self._name)
        if tensor is None:
            raise RuntimeError(
                f"{self._name!r} of {type(module).__name__} is no parameter any more: it was "
                "parametrized, pruned, replaced or deleted after this extractor was made. Make the "
                "extractor again with create_feature_extractor"
            )
        if tensor is not self._tensor:
            self._own[self._name] = self._tensor = tensor


# The code is made of the graphs; the options may hold what cannot be pickled.
_NOT_COPIED = frozenset({"_code", "_options", "_moving", "followed"})


class FeatureExtractor(fx.GraphModule):
    """Returns the selected features of a model as ``OrderedDict[str, value]``, in execution order.

    Made by :func:`featuretap.create_feature_extractor`. Its parameters, buffers and leaf modules
    are the model's own objects under the model's own names. Which graph runs is decided at each
    call from ``training``.
    """

    def __init__(self, parts: ExtractorParts) -> None:
        nn.Module.__init__(self)
        self._parts = parts
        self._tracer_cls = None
        self._tracer_extras: dict[str, Any] = {}
        self._lineno_map: dict[int, int | None] | None = None
        self._prologue_start = 0
        self.meta: dict[str, Any] = {}
        self._options: Options | None = None
        self._moving: dict[str, Moving] = {}
        self.followed: list[Followed] = []
        self.recompile()

    @property
    def train_graph(self) -> fx.Graph:
        """The graph that runs in train mode; an ``AttributeError`` says why there is none."""
        return self._graph_of("train")

    @property
    def eval_graph(self) -> fx.Graph:
        """The graph that runs in eval mode; an ``AttributeError`` says why there is none."""
        return self._graph_of("eval")

    @property
    def graph(self) -> fx.Graph:
        """The graph of the mode that the extractor is in."""
        graph = self._graph_of(self._mode)
        if graph.owning_module is None:
            # Passes ask it for the modules. Not before, so that an extractor is freed with its last user.
            graph.owning_module = self
        return graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        self._parts.graphs[self._mode] = graph
        self.recompile()

    @property
    def _graph(self) -> fx.Graph:  # type: ignore[override]
        return self._graph_of(self._mode)

    def graphs(self) -> list[fx.Graph]:
        """Return the graphs of the modes that this extractor has."""
        return [graph for graph in self._parts.graphs.values() if isinstance(graph, fx.Graph)]

    @property
    def return_nodes(self) -> dict[str, str]:
        """Node name -> output key, for the mode that the extractor is in."""
        return dict(self._parts.return_nodes[self._mode])

    @property
    def auto_leaves(self) -> dict[str, str]:
        """Path of each module that could not be traced and became a leaf by itself -> why."""
        return dict(self._parts.auto_leaves)

    @property
    def missing_modes(self) -> dict[str, str]:
        """``"train"`` or ``"eval"`` -> why this extractor cannot be used in that mode."""
        return {m: graph for m, graph in self._parts.graphs.items() if isinstance(graph, str)}

    @property
    def _mode(self) -> str:
        return "train" if self.training else "eval"

    def _graph_of(self, mode: str) -> fx.Graph:
        graph = self._parts.graphs[mode]
        if isinstance(graph, str):
            raise AttributeError(graph)
        return graph

    def recompile(self) -> Any:
        """Compile ``forward`` from both graphs, after a change to one of them."""
        parts = self._parts
        forward, self._code = compile_forward(
            parts.signature, parts.graphs, parts.fixed, parts.class_name, _OWN
        )
        cls: Any = type(self)
        cls.forward = forward
        cls.__call__ = _own_code(FeatureExtractor.__call__)
        cls.__name__ = parts.class_name
        if parts.converts_itself:
            cls._apply = _refuse_to_convert
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph of the mode; if it fails, state and random numbers are as before."""
        undo = None if is_compiling() else self._before_call()
        if undo is None:
            return super().__call__(*args, **kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except BaseException as error:
            if not ends_recomputation(error):
                undo.restore()
            raise

    def _before_call(self) -> Undo | None:
        for parameter in self.followed:
            parameter.follow()
        mode = self._mode
        moves = self._parts.moves[mode]
        if not any(moves):
            return None
        moving = self._moving.get(mode)
        if moving is None or not moving.is_current:
            moving = self._moving[mode] = Moving(self, moves)
        with no_torch_function():  # a trace of an extractor around this one is no forward
            return moving.undo()

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Switch graphs, and set each submodule to the flag it has in the model in that mode."""
        super().train(mode)
        odd = self._parts.flag_exceptions["train" if mode else "eval"]
        known = dict(self.named_modules(remove_duplicate=False)) if odd else {}
        for path in known.keys() & odd:
            known[path].training = not mode
        return self

    # -- copies ---------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureExtractor:
        state = {name: copy.deepcopy(value, memo) for name, value in self._state().items()}
        new = _from_state(state)
        new._options = self._options
        memo[id(self)] = new
        return new

    def __copy__(self) -> FeatureExtractor:
        new = _from_state(self._state())
        new._options = self._options
        return new

    def _replicate_for_data_parallel(self) -> FeatureExtractor:
        """Return what ``nn.DataParallel`` fills with the tensors of another device: a shallow copy."""
        replica = copy.copy(self)
        registries = {"_buffers": self._buffers.copy(), "_modules": self._modules.copy()}
        vars(replica).update(registries, _parameters={}, _is_replica=True, followed=[])
        return replica

    def __reduce__(self) -> Any:
        return _from_state, (self._state(),)

    def _state(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in _NOT_COPIED}
        parts = vars(self._parts).copy()
        graphs = self._parts.graphs
        parts["graphs"] = {
            mode: graph if isinstance(graph, str) else graph_to_state(graph)
            for mode, graph in graphs.items()
        }
        if graphs["train"] is graphs["eval"]:
            parts["graphs"]["eval"] = None
        return {**state, "_parts": parts}

    # -- other tools ----------------------------------------------------------------------------

    def __prepare_scriptable__(self) -> fx.GraphModule:
        """Give TorchScript a plain GraphModule of the current mode, in the subset it understands."""
        graph = copy.deepcopy(self.graph)
        if any(meta_keys.REGIONS in node.meta for node in graph.nodes):
            raise RuntimeError(
                "this extractor cannot be scripted: the forward of the model has no_grad or autocast "
                "regions, which a scripted graph would lose. Use torch.compile or torch.export"
            )
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target is copy_value:
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.call_method("clone", node.args))
                graph.erase_node(node)
        module = fx.GraphModule(self, graph)
        module.train(self.training)
        return module

    def __featuretap_inline__(
        self, tracer: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> OrderedDict[str, Any]:
        """Record this extractor's nodes into ``tracer`` under the names they have here."""
        return replay(self, self._parts.signature, tracer, path, args, kwargs)


_OWN = frozenset(dir(FeatureExtractor)) | frozenset(
    "_code _lineno_map _moving _options _parts _prologue_start _tracer_cls _tracer_extras "
    "followed meta training".split()
)


def _refuse_to_convert(self: FeatureExtractor, *_: object, **__: object) -> NoReturn:
    name = self._parts.class_name
    raise RuntimeError(
        f"{name} converts itself in a way of its own (it defines _apply), which this extractor, made of "
        f"graphs, does not know: convert the {name} and make the extractor again, or make it with "
        "backend='hooks'"
    )


def _own_code(function: Any) -> types.FunctionType:
    """Return the same function with code of its own: dynamo gives up on what too many callers share."""
    code, name = function.__code__.replace(), function.__name__
    return types.FunctionType(code, function.__globals__, name, None, function.__closure__)


def _from_state(state: dict[str, Any]) -> FeatureExtractor:
    parts = dict(state["_parts"])
    graphs = {
        mode: graph_from_state(graph) if isinstance(graph, list) else graph
        for mode, graph in parts["graphs"].items()
    }
    # Modes that need the same nodes share one graph.
    graphs["eval"] = graphs["train"] if graphs["eval"] is None else graphs["eval"]
    parts["graphs"] = graphs
    new = FeatureExtractor(ExtractorParts(**parts))
    vars(new).update({name: value for name, value in state.items() if name != "_parts"})
    return new
