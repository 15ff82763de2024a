"""What the command asks of featuretap: the nodes with what they stand for, and their values."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..api import create_feature_extractor, get_graph_node_names
from ..errors import FAILS_ON_EXAMPLE, NodeNotFoundError, UntraceableModelError
from ..graphs import meta_keys
from ..names.node_names import NodeNames
from .inputs import make_inputs
from .text import CommandError, describe, note, signature_text

if TYPE_CHECKING:
    from .arguments import Arguments

__all__ = ["Survey", "extract", "survey"]

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Survey:
    """All nodes of a model.

    Attributes:
        model: the model, or a copy of it without values.
        names: the names, by mode.
        listed: the names of the mode asked for.
        sources: node name -> path of the module or parameter that it stands for, or the name.
        values: node name -> value in the mode asked for; empty if there was no input.

    """

    model: nn.Module
    names: NodeNames
    listed: list[str]
    sources: Mapping[str, str]
    values: Mapping[str, Any]


def survey(model: nn.Module, args: Arguments) -> Survey:
    """List the nodes of ``model``, and run it if there is an input.

    It runs on the meta device, without values, where that works.

    Raises:
        CommandError: if the model cannot be listed, or rejects the input.

    """
    if args.inputs:
        inputs = [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in args.inputs]
        # Anything may go wrong without values (`.item()`, tensors that are no buffers, ...). What is
        # wrong with the model or the input itself shows again below.
        with suppress(Exception):
            return _survey(_without_values(model), args, tuple(inputs))
    return _survey(model, args, make_inputs(args, model))


def extract(model: nn.Module, inputs: Inputs, args: Arguments) -> Mapping[str, Any]:
    """Return the features that ``args.nodes`` asks for, in execution order.

    Raises:
        CommandError: if a name is no node, or the model rejects the input.

    """
    # Only one mode is used, so in the other one nothing is asked for but what always exists.
    requests = {"train": [""], "eval": [""], args.mode: args.nodes}
    with _explained(model, args):
        return _run(_extractor(model, requests, args, inputs), inputs, args)


def _survey(model: nn.Module, args: Arguments, inputs: Inputs) -> Survey:
    mode, other = ("train", "eval") if args.mode == "train" else ("eval", "train")
    with _explained(model, args):
        names = get_graph_node_names(
            model, suppress_diff_warning=True, example_args=inputs or None, backend=args.backend
        )
        if mode in names.failures:
            raise CommandError(
                f"{type(model).__name__} has no {mode} mode: {names.failures[mode]}. "
                f"With --{other} it can be listed"
            )
        if not (names.train or names.eval):
            raise CommandError(
                f"{type(model).__name__} has no modules inside, and no arguments that could be listed "
                "without running it: give --input, one for each argument of its forward"
            )
        requests = {"train": names.train or names.eval, "eval": names.eval or names.train}
        extractor = _extractor(model, requests, args, inputs)
        values = _run(extractor, inputs, args) if inputs else {}
    if not inputs and not isinstance(extractor, fx.GraphModule):
        note("without --input only modules are listed: operations show when the model runs")
    listed = names.train if mode == "train" else names.eval
    # A name that both modes have may be a module's call in one and an operation in the other.
    themselves = {name: name for name in listed}
    sources = _sources(extractor, other) | themselves | _sources(extractor, mode)
    return Survey(model, names, listed, sources, values)


def _extractor(
    model: nn.Module, requests: Mapping[str, Sequence[str]], args: Arguments, inputs: Inputs
) -> nn.Module:
    return create_feature_extractor(
        model,
        train_return_nodes=requests["train"],
        eval_return_nodes=requests["eval"],
        suppress_diff_warning=True,
        example_args=inputs or None,
        backend=args.backend,
    )


def _run(extractor: nn.Module, inputs: Inputs, args: Arguments) -> Mapping[str, Any]:
    torch.manual_seed(args.seed)
    with torch.no_grad():
        values: Mapping[str, Any] = extractor(*inputs)
    return values


def _sources(extractor: nn.Module, mode: str) -> dict[str, str]:
    """Read off a graph what each node calls; an extractor without graphs does not say."""
    graph = getattr(extractor, f"{mode}_graph", None)
    return {
        node.meta[meta_keys.NAME]: str(node.target)
        for node in (graph.nodes if isinstance(graph, fx.Graph) else ())
        if node.op in ("call_module", "get_attr") and meta_keys.NAME in node.meta
    }


def _without_values(model: nn.Module) -> nn.Module:
    """Copy ``model`` to the meta device, without ever holding its tensors twice."""
    done: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        on_meta = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        done[id(parameter)] = on_meta
    return copy.deepcopy(model, done)


@contextmanager
def _explained(model: nn.Module, args: Arguments) -> Iterator[None]:
    """Say what went wrong in the words of the command line."""
    try:
        yield
    except CommandError:
        raise
    except NodeNotFoundError as error:
        raise CommandError(f"{error}. Without --nodes this command prints all nodes") from error
    except UntraceableModelError as error:
        if not str(error).startswith(FAILS_ON_EXAMPLE):
            raise CommandError(str(error)) from error
        raise _not_with_input(model, args, error.__cause__ or error) from error
    except Exception as error:
        raise _not_with_input(model, args, error) from error


def _not_with_input(model: nn.Module, args: Arguments, error: BaseException) -> CommandError:
    given = " ".join(f"--input {spec}" for spec in args.inputs) or "no --input"
    return CommandError(
        f"{type(model).__name__} does not run with {given}: {describe(error)}. "
        f"Its forward takes {signature_text(model.forward)}, one --input for each"
    )
