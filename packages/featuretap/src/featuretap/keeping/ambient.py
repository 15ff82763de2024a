"""What a forward may switch for its thread or process: grad mode, autocast, the default dtype, hooks."""

from __future__ import annotations

import torch

from .. import _compat

__all__ = ["Ambient", "HooksOfEveryModule"]


class Ambient:
    """The switches as they are now. A forward that is left half-way may not have turned them back."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._dtype = torch.get_default_dtype()
        self._autocast = _compat.autocast_state()
        self._settings = [read() for read, _ in _compat.process_settings()]

    @property
    def settings_changed(self) -> bool:
        """Whether a setting of the whole process is another one now."""
        return self._settings != [read() for read, _ in _compat.process_settings()]

    def restore(self) -> None:
        """Turn back what was switched since."""
        for (read, write), value in zip(_compat.process_settings(), self._settings, strict=True):
            if read() != value:
                write(value)
        if torch.is_grad_enabled() != self._grad:
            torch.set_grad_enabled(self._grad)
        if torch.get_default_dtype() != self._dtype:
            torch.set_default_dtype(self._dtype)
        if _compat.autocast_state() != self._autocast:
            _compat.set_autocast_state(self._autocast)


class HooksOfEveryModule:
    """The hooks that run in the calls of all modules of the process, as they are now."""

    def __init__(self) -> None:
        self._registries = _compat.hooks_of_every_module()
        self._before = [set(registry) for registry in self._registries]

    def forget_new(self) -> bool:
        """Take out those that were registered since; say whether there were any."""
        if not any(self._registries):
            return False
        both = zip(self._registries, self._before, strict=True)
        new = [(now, key) for now, before in both for key in now.keys() - before]
        for registry, key in new:
            del registry[key]
        return bool(new)
