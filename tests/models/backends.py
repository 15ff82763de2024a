"""Compare the two backends on all models of a library, and print the totals (rule N9).

Run from the repository root: ``python tests/models/backends.py torchvision`` (or ``timm``), with model
names behind it to look at these alone.
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "models")]

import torch  # noqa: E402
from builders import models  # noqa: E402
from comparison import restore, same, tensors_of  # noqa: E402
from torch import nn  # noqa: E402

import featuretap_hooks  # noqa: E402
from featuretap.api import make_options  # noqa: E402
from featuretap.modes import record_modes  # noqa: E402
from featuretap.recording import Recording  # noqa: E402
from support import copied  # noqa: E402

CAUSE = "an item of the tuple that an auto leaf of fx returns; hooks look into that module instead"


@dataclass
class Agreement:
    """How far the backends agree on one model in one mode."""

    model: str
    mode: str
    nodes: int = 0
    """Nodes of fx with a tensor in them."""
    not_accepted: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    """Of those accepted, nodes with another value."""
    out_of_order: bool = False
    more: list[str] = field(default_factory=list)
    """Tensor nodes of hooks that fx does not have."""
    problem: str = ""

    def row(self) -> str:
        """One line for a table."""
        bad = f"not accepted {self.not_accepted[:3]} different {self.different[:3]} more {self.more[:3]}"
        fine = not (self.not_accepted or self.different or self.more or self.out_of_order)
        state = "ok" if fine else bad + (" out of order" if self.out_of_order else "")
        return f"{self.model}\t{self.mode}\t{self.nodes}\t{self.problem or state}"


def agreement(name: str, model: nn.Module, mode: str, *args: Any) -> Agreement:
    """Extract every node on both backends from the same state and seed."""
    result = Agreement(name, mode)
    model.train(mode == "train")
    state = {key: value.clone() for key, value in tensors_of(model).items()}
    recording = record_modes(model, make_options(None, None))[mode]
    if not isinstance(recording, Recording):
        result.problem = "not traceable in this mode"
        return result
    hooks_names = getattr(
        featuretap_hooks.get_graph_node_names(
            model, example_args=copied(args), suppress_diff_warning=True
        ),
        mode,
    )
    fx_names = list(recording.names)
    hidden = tuple(f"{path}." for path in recording.auto_leaves)
    values = {}
    asked = {"fx": fx_names, "hooks": list(dict.fromkeys([*hooks_names, *fx_names]))}
    for backend, names in asked.items():
        extractor = featuretap_hooks.create_feature_extractor(
            model,
            train_return_nodes=names if mode == "train" else [""],
            eval_return_nodes=names if mode == "eval" else [""],
            backend=backend,
            missing="skip" if backend == "hooks" else "error",
            suppress_diff_warning=True,
        )
        torch.manual_seed(0)
        with torch.no_grad():
            values[backend] = extractor(*copied(args))
        restore(model, state)
    fx = {key: value for key, value in values["fx"].items() if isinstance(value, torch.Tensor)}
    hooks = {
        key: value
        for key, value in values["hooks"].items()
        if isinstance(value, torch.Tensor) and not key.startswith(hidden)
    }
    # What torch.empty finds in memory is nobody's value.
    empty = re.compile(r"(.*\.)?(new_)?empty(_like)?(_\d+)?$")
    result.nodes = len(fx)
    result.not_accepted = [key for key in fx if key not in values["hooks"]]
    result.different = [
        key for key in fx if key in hooks and not same(hooks[key], fx[key]) and not empty.match(key)
    ]
    result.more = [key for key in hooks if key not in fx]
    result.out_of_order = [k for k in fx if k in hooks] != [k for k in hooks if k in fx]
    return result


def exceptions(results: list[Agreement]) -> list[str]:
    """One line for each node of fx that hooks do not have, or have with another value."""
    lines = []
    for result in results:
        for what in ("not_accepted", "different", "more"):
            for name in getattr(result, what):
                lines.append(f"{result.model}\t{result.mode}\t{name}\t{what}\t{CAUSE}")
    return lines


def main() -> None:
    library, *only = sys.argv[1:]
    warnings.simplefilter("ignore")
    results: list[Agreement] = []
    for name, model, x in models(library, only):
        for mode in ("eval", "train"):
            try:
                batch = x if mode == "eval" else torch.cat([x, x.flip(-1)])
                results.append(agreement(name, model, mode, batch))
            except Exception as error:
                if only:
                    traceback.print_exc()
                results.append(
                    Agreement(name, mode, problem=f"{type(error).__name__}: {error}"[:200])
                )
            print(results[-1].row(), flush=True)
    good = [result for result in results if not result.problem]
    print(
        f"{library}: {len(results)} models x modes, {len(good)} compared; "
        f"{sum(result.nodes for result in good)} tensor nodes of fx, "
        f"{sum(len(result.not_accepted) for result in good)} not accepted by hooks, "
        f"{sum(len(result.different) for result in good)} with another value, "
        f"{sum(len(result.more) for result in good)} more on hooks, "
        f"{sum(result.out_of_order for result in good)} in another order"
    )
    if not only:
        path = TESTS / "golden" / f"{library}_backends.tsv"
        path.write_text("\n".join(["model\tmode\tname\twhat\tcause", *exceptions(results)]) + "\n")


if __name__ == "__main__":
    main()
