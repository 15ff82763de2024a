"""From ``module:attribute`` to a model."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import nearest
from ..messages import failure_location
from .text import CommandError, describe, did_you_mean, signature_text

if TYPE_CHECKING:
    from .arguments import Arguments

__all__ = ["load_model", "require"]

# Packages whose name for pip is known to be the name to import.
_INSTALLABLE = ("numpy", "safetensors", "timm", "torchvision", "transformers")


def require(name: str, purpose: str) -> Any:
    """Import a package that is not needed by featuretap itself.

    Raises:
        CommandError: if it cannot be imported, with the line that installs it.

    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise CommandError(
            f"{purpose} needs the package {package}, which is not installed: pip install {package}"
        ) from error


def load_model(args: Arguments) -> nn.Module:
    """Import, build, move and switch the model that ``args`` names.

    Raises:
        CommandError: if any of it does not work.

    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    factory = _resolve(args.model)
    torch.manual_seed(args.seed)
    model = _build(factory, args)
    try:
        model.to(args.device)
        model.train(args.mode == "train")
    except Exception as error:
        raise CommandError(
            f"{type(model).__name__} cannot be used on {args.device} in {args.mode} mode: "
            f"{describe(error)}. Try another --device"
        ) from error
    return model


def _resolve(spec: str) -> Any:
    """Return what ``module:attribute`` names; the attribute may have dots in it."""
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        guess = (
            [":".join(spec.rsplit(".", 1))] if "." in spec.strip(".:") and ":" not in spec else []
        )
        raise CommandError(
            f"{spec!r} does not say which model.{did_you_mean(guess)} "
            "Write module:name, as torchvision.models:resnet18"
        )
    found: Any = _import(module_name)
    said, joint = module_name, ":"
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            hint = did_you_mean([f"{said}{joint}{other}" for other in nearest(name, dir(found))])
            raise CommandError(
                f"{said!r} has no {name!r}.{hint} Write the name of a factory, a class or a model"
            ) from error
        said, joint = f"{said}{joint}{name}", "."
    return found


def _import(name: str) -> ModuleType:
    try:
        # The package first, so that it is the one reported if nothing of it is there.
        importlib.import_module(name.partition(".")[0])
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise _no_module(missing) from error
        raise _import_failed(name, error) from error
    except Exception as error:
        raise _import_failed(name, error) from error


def _no_module(name: str) -> CommandError:
    if name in _INSTALLABLE:
        return CommandError(f"the package {name} is not installed: pip install {name}")
    parent, _, last = name.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", []) if parent else None
    pool = [module.name for module in pkgutil.iter_modules(path)]
    alike = nearest(os.path.basename(last), pool)
    if last == "py":
        alike = [os.path.basename(parent)]
        parent = ""
    hint = did_you_mean([f"{parent}.{other}".lstrip(".") for other in alike])
    return CommandError(
        f"there is no module {name!r}.{hint} "
        "Run the command in the directory that holds it, or install its package"
    )


def _import_failed(name: str, error: Exception) -> CommandError:
    return CommandError(
        f"importing {name!r} failed: {describe(error)}{_where(error)}{_install(error)}"
    )


def _build(factory: Any, args: Arguments) -> nn.Module:
    given = [_argument(text) for text in args.values]
    positional = [value for key, value in given if key is None]
    keywords = {key: value for key, value in given if key is not None}
    if args.weights is not None:
        keywords["weights"] = args.weights
    if isinstance(factory, nn.Module):
        if positional or keywords:
            raise CommandError(f"{args.model!r} is a model already: leave out --arg and --weights")
        return factory
    if not callable(factory):
        raise CommandError(
            f"{args.model!r} is of type {type(factory).__name__}, which makes no model. "
            "Write the name of a factory, a class or a model"
        )
    if args.weights is not None:
        _check_weights(factory, args.weights)
    try:
        model = factory(*positional, **keywords)
    except Exception as error:
        raise CommandError(
            f"{args.model}({_call(positional, keywords)}) raised {describe(error)}{_where(error)}"
            f"{_install(error)}. It takes {signature_text(factory)}: see --arg and --weights"
        ) from error
    if not isinstance(model, nn.Module):
        raise CommandError(
            f"{args.model}({_call(positional, keywords)}) returned {type(model).__name__}, "
            "not a torch.nn.Module. Name a factory or a class that makes a model"
        )
    return model


def _argument(text: str) -> tuple[str | None, Any]:
    """Read one ``--arg``: ``value``, or ``key=value`` where ``key`` could be a Python name."""
    key, equals, value = text.partition("=")
    if equals and key.isidentifier():
        return key, _literal(value)
    return None, _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _check_weights(factory: Any, name: str) -> None:
    """Name the nearest weights of torchvision's; the factory itself only says ``KeyError``."""
    if not getattr(factory, "__module__", "").startswith("torchvision.models."):
        return
    try:
        weights: Any = importlib.import_module("torchvision.models").get_model_weights(factory)
    except (AttributeError, ValueError):
        return
    known = list(weights.__members__)
    if name.removeprefix(f"{weights.__name__}.") not in known:
        hint = did_you_mean(nearest(name, known, 1))
        raise CommandError(
            f"{factory.__name__} has no weights {name!r}.{hint} There is {', '.join(known)}"
        )


def _call(positional: list[Any], keywords: dict[str, Any]) -> str:
    return ", ".join(
        [*map(repr, positional), *(f"{key}={value!r}" for key, value in keywords.items())]
    )


def _where(error: Exception) -> str:
    location = failure_location(error)
    return f" ({location})" if location and not location.startswith("<") else ""


def _install(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f": pip install {error.name.partition('.')[0]}"
    return ""
