"""Extracted features as a file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .loading import require
from .text import CommandError, describe, note
from .values import is_plain, leaves

__all__ = ["check_target", "save"]

Tensors = Mapping[str, torch.Tensor]


def check_target(target: str) -> None:
    """Find out, before the model is built, whether ``target`` could be written.

    Raises:
        CommandError: if its format is not known, a package is missing, or there is no such folder.

    """
    path = Path(target)
    if path.suffix not in _FORMATS:
        raise CommandError(
            f"--save {target!r} has no format that can be written: write .safetensors or .npz"
        )
    require(path.suffix[1:] if path.suffix == ".safetensors" else "numpy", f"--save {target!r}")
    if not os.path.isdir(path.parent):
        raise CommandError(
            f"--save {target!r} cannot be written: make the folder {str(path.parent)!r} first"
        )
    if os.path.isdir(path):
        raise CommandError(
            f"--save {target!r} cannot be written: it is a folder. Name a file in it"
        )


def save(values: Mapping[str, Any], target: str) -> str:
    """Write every tensor and number in ``values``, and say so in one line.

    Raises:
        CommandError: if the file cannot be written, or the format has no such dtype.

    """
    tensors: dict[str, torch.Tensor] = {}
    left_out: list[str] = []
    for name, value in values.items():
        for part, leaf in leaves(name, value):
            tensor = _tensor(leaf)
            if tensor is None:
                left_out.append(f"{part} is a {_kind(leaf)}")
            else:
                tensors[part] = tensor
    if not tensors:
        raise CommandError(
            f"--save {target!r}: there is no tensor among the nodes asked for ({', '.join(left_out)}). "
            "Ask for one that has values"
        )
    try:
        _FORMATS[Path(target).suffix](tensors, target)
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(f"--save {target!r} cannot be written: {describe(error)}") from error
    if left_out:
        note(f"not saved: {', '.join(left_out)}")
    return f"saved {len(tensors)} {'tensor' if len(tensors) == 1 else 'tensors'} to {target}"


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    kind = "quantized" if value.is_quantized else "nested" if value.is_nested else value.layout
    return f"{str(kind).removeprefix('torch.')} tensor"


def _tensor(value: Any) -> torch.Tensor | None:
    """Return ``value`` as a tensor that shares its memory with no other; numbers become scalars."""
    if isinstance(value, torch.Tensor):
        if not is_plain(value):
            return None
        alone = value.detach().cpu().resolve_conj().resolve_neg()
        return alone.clone(memory_format=torch.contiguous_format)
    if isinstance(value, torch.Size):
        return torch.tensor(tuple(value), dtype=torch.int64)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    return torch.tensor(value) if isinstance(value, (bool, int)) else None


def _write_safetensors(tensors: Tensors, target: str) -> None:
    require("safetensors.torch", "saving").save_file(tensors, target)


def _write_npz(tensors: Tensors, target: str) -> None:
    """Write what ``numpy.savez`` would write, which cannot have a node named ``file``."""
    numpy = require("numpy", "saving")
    arrays = {name: _array(name, tensor) for name, tensor in tensors.items()}
    with zipfile.ZipFile(target, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                numpy.lib.format.write_array(stream, array, allow_pickle=False)


def _array(name: str, tensor: torch.Tensor) -> Any:
    try:
        return tensor.numpy()
    except TypeError as error:
        raise CommandError(
            f"NumPy has no {str(tensor.dtype).removeprefix('torch.')}, the dtype of {name!r}; "
            "save to a .safetensors file instead"
        ) from error


_FORMATS: dict[str, Callable[[Tensors, str], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
}
