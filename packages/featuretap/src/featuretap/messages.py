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

from . import backends  # which imports this
from .errors import UntraceableModelError
from .inspecting.reading import forward_of
from .inspecting.whose import FEATURETAP

__all__ = ["failure_location", "location_of", "untraceable", "warn"]

_NOT_THE_MODEL = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
_STANDARD = tuple(sysconfig.get_paths()[kind] + os.sep for kind in ("stdlib", "platstdlib"))
_INSTALLED = tuple(sysconfig.get_paths()[kind] + os.sep for kind in ("purelib", "platlib"))


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and point at the line of the user's code that called us."""
    frame: types.FrameType | None = sys._getframe(1)
    level = 2
    while (
        frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in FEATURETAP
    ):
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


def location_of(error: BaseException | None, module: nn.Module) -> str:
    """Return where the code of ``module`` failed; where its forward begins, if that is all one knows."""
    location = "" if error is None else failure_location(error)
    code = getattr(forward_of(module).function, "__code__", None)
    return location if location or code is None else f"{code.co_filename}:{code.co_firstlineno}"


def untraceable(model: nn.Module, error: Exception | str) -> UntraceableModelError:
    """Make the error that says that the forward of ``model`` cannot be recorded, where, and why."""
    if isinstance(error, UntraceableModelError):
        return error
    cause = None if isinstance(error, str) else error
    location = location_of(cause, model)
    reason = error if cause is None else f"{type(cause).__name__}: {cause}"
    at = f" at {location}" if location else ""
    first = "" if "hooks" in backends.available_backends() else "install featuretap-hooks and "
    text = (
        f"torch.fx cannot record {type(model).__name__}.forward{at}: {reason}. Ways out: name the "
        "module that does it in tracer_kwargs={'leaf_modules': [...]}, or the function in "
        "{'autowrap_functions': [...]}; fix arguments that choose a branch with concrete_args={...}; or "
        f"{first}use backend='hooks', which watches the real forward"
    )
    return UntraceableModelError(text, "", location)
