"""The node names of the zoo and of ten torchvision models, as text that every torch must repeat.

Run from the repository root to write ``tests/golden/names`` anew: ``python tests/models/golden_names.py``.
Both packages must be installed, on any torch that both support.
"""

from __future__ import annotations

import sys
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "models")]

import torch  # noqa: E402
from builders import torchvision_model  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402

import featuretap  # noqa: E402
from zoo import ZOO  # noqa: E402

FOLDER = TESTS / "golden" / "names"
TORCHVISION = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "fcn_resnet50",
    "googlenet",
    "mobilenet_v3_small",
    "resnet18",
    "swin_t",
    "vit_b_16",
]


def listed(model: nn.Module, backend: str, *example: Any) -> str:
    """Return the names of a model line by line; those of one mode alone say which."""
    names = featuretap.get_graph_node_names(
        model, example_args=example, backend=backend, suppress_diff_warning=True
    )
    eval_, train = names.eval, names.train
    lines: list[str] = []
    for what, a, b, c, d in SequenceMatcher(None, eval_, train, autojunk=False).get_opcodes():
        if what == "equal":
            lines += eval_[a:b]
        else:
            lines += [f"{name}\teval" for name in eval_[a:b]]
            lines += [f"{name}\ttrain" for name in train[c:d]]
    return "".join(f"{line}\n" for line in lines)


def zoo_names(name: str, backend: str, *, device: str = "cpu") -> str:
    """List a model of the zoo; the same weights everywhere, for some ask what the values are."""
    with torch.device("cpu"):
        model = ZOO[name]()
    example = tree_map(lambda value: value.to(device), model.example())
    return listed(model.to(device), backend, *example)


def torchvision_names(name: str, backend: str, *, batch: int = 2, device: str = "cpu") -> str:
    """List a torchvision model."""
    model, x = torchvision_model(name)
    return listed(model.to(device), backend, torch.cat([x] * batch).to(device))


def golden(name: str, backend: str) -> str:
    """Return the names written down. Hooks have a file only where they list others than fx."""
    path = FOLDER / f"{name}.{backend}.txt"
    if not path.exists():
        path = FOLDER / f"{name}.fx.txt"
    return path.read_text(encoding="utf-8")


def golden_zoo(backend: str) -> dict[str, str]:
    """Return the names written down of each model of the zoo."""
    parts = golden("zoo", backend).split("\n[")
    pairs = (part.lstrip("[").split("]\n", 1) for part in parts)
    return {name: f"{names.rstrip()}\n" for name, names in pairs}


def main() -> None:
    """Write the golden names."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = {
        (name, backend): torchvision_names(name, backend)
        for name in TORCHVISION
        for backend in ("fx", "hooks")
    }
    for backend in ("fx", "hooks"):
        texts["zoo", backend] = "\n".join(f"[{name}]\n{zoo_names(name, backend)}" for name in ZOO)
    for (name, backend), text in texts.items():
        path = FOLDER / f"{name}.{backend}.txt"
        path.unlink(missing_ok=True)
        if backend == "fx" or text != texts[name, "fx"]:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
