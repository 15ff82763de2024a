"""The longer error texts, in one place so that they speak with one voice."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
import types
import warnings

import torch
from torch import nn

from .errors import UntraceableModelError

__all__ = ["explain_failure", "failure_location", "untraceable", "warn"]

_OURS = ("featuretap", "featuretap_hooks")

_NOT_THE_MODEL = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
_STANDARD = tuple(sysconfig.get_paths()[kind] + os.sep for kind in ("stdlib", "platstdlib"))
_INSTALLED = tuple(sysconfig.get_paths()[kind] + os.sep for kind in ("purelib", "platlib"))


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and point at the line of the user's code that called us."""
    frame: types.FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def failure_location(error: BaseException) -> str:
    """Return ``"file:line"`` of the innermost statement that belongs to the model's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_the_models(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _is_the_models(filename: str) -> bool:
    if filename.startswith(_STANDARD) and not filename.startswith(_INSTALLED):
        return False
    return not filename.startswith(_NOT_THE_MODEL)


def explain_failure(model: nn.Module, path: str, location: str, reason: str) -> str:
    """Say that a forward cannot be recorded, where, why, and what the ways out are."""
    name = type(model).__name__
    where = f"{name}.forward" if path == "" else f"the forward of {path!r} in {name}"
    at = f" at {location}" if location else ""
    return (
        f"torch.fx cannot record {where}{at}: {reason}. Ways out: name the module that does it in "
        "tracer_kwargs={'leaf_modules': [...]}, or the function in {'autowrap_functions': [...]}; "
        "fix arguments that choose a branch with concrete_args={...}; or install featuretap-hooks "
        "and use backend='hooks', which watches the real forward"
    )


def untraceable(model: nn.Module, error: Exception) -> UntraceableModelError:
    """Make the error that says that the forward of ``model`` cannot be recorded, because of ``error``."""
    if isinstance(error, UntraceableModelError):
        return error
    location = failure_location(error)
    text = explain_failure(model, "", location, f"{type(error).__name__}: {error}")
    return UntraceableModelError(text, "", location)
