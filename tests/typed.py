"""Code that asks ``type(x)``, for forwards that come to it in different ways."""

from __future__ import annotations

import torch


def double(value):
    return value * 2 if type(value) is torch.Tensor else value


class Doubles:
    def double(self, value):
        return double(value)

    def __call__(self, value):
        return self.double(value)

    @staticmethod
    def statically(value):
        return value * 2 if type(value) in (torch.Tensor, int) else value
