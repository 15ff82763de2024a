"""Rules V2 and N9 on random forwards that decide by tensors which they make, write, draw or keep.

``RANDOM_MODELS=5000`` tries that many, new ones each time.
"""

from __future__ import annotations

import linecache
import math
import os
import re

import torch
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st
from torch import nn

import featuretap

COUNT = int(os.environ.get("RANDOM_MODELS", "0"))

# ``T`` is a tensor of four that is there, ``M`` one that the forward made, ``N`` a number; the small
# letters are assigned.
TEMPLATES = """
$m = torch.zeros(4) | $m = torch.arange(4.0) | $m = torch.rand(4) | $m = torch.tensor([1.0, 0, 2, 0])
$m = torch.empty(4).fill_(1) | $m = self.buf.clone() | $m = torch.zeros_like(self.buf) | $m = self.buf * 1
$m = $M.view(-1) | $m = $M[:] | $m = $M.expand_as($T) | $m = $M.detach() | $m = $M.view(2, 2).view(4)
$t = $T.sin() | $t = $T * $N | $t = $T + $T | $t = torch.where($T > 0, $T, $M) | $t = $T.flip(0)
$t = torch.cat([$M[:2], $T[2:]]) | $t = $M * $N | $t = $T.clone()
$M.add_($T) | $M[:2].add_($T[:2]) | $M[1] = $T.sum() | $M.mul_($N) | $M.copy_($T) | $M.uniform_()
$M += $T | torch.add($T, 1, out=$M) | $M.view(2, 2)[0].fill_($T.max()) | $M[$M > 1] = 0
nn.init.uniform_($M) | $M.unbind()[0].add_($T[1]) | torch.relu_($M) | $M.clamp_($N) | $M[0] = 7
$n = int($M.sum() > 2) | $n = $M.nonzero().shape[0] | $n = len($M[$M > 0]) | $n = $M.tolist()[0]
$n = 2 if $M.sum() > 1 else 3 | $n = int(bool(($M == $T).all())) | $n = $M.max().item()
$n = $T.numel() | $n = $M.shape[0] | $n = 2 if ($M > 1).any() else 3 | $n = $M.unique().numel()
$n = 3 if str($T.dtype) == "torch.float32" else 4 | $n = 3 if $M.dtype == torch.float32 else 4
$n = int($M[0] < $M[1]) | $n = 2 if torch.equal($M, $M) else 3 | $n = float($M[2])
$n = round(float($M[0])) | $n = $M.argmax().item() | $n = len(torch.arange(int($M[3].abs().clamp(max=9))))
$n = 2 if $M.requires_grad else 3 | $n = 2 if $M is $T else 3 | $n = torch.masked_select($M, $M > 0).numel()
$n = sum(1 for v in $M if v > 1) | $n = len(f"{$N}") | $n = len(set($M.long().tolist()))
if $N > 1: $M.add_(1)
"""
SHOWN = re.compile(r"\$(\w)")
INPUTS = [
    (torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.0, 1, 0, 2])),
    (torch.tensor([-1.0, 0, 3, -4]), torch.tensor([0.0, 1, 0, 2])),
    (torch.zeros(4), torch.tensor([3.0, 3, -1, 0])),
]


@st.composite
def forwards(draw: st.DrawFn) -> str:
    """Return the source of a forward, which returns what all its variables are in the end."""
    templates = [template.strip() for template in re.split(r"[|\n]", TEMPLATES) if template.strip()]
    known = {"T": ["x", "self.buf", "m0"], "M": ["m0"], "N": ["2"]}
    lines = ["m0 = torch.ones(4)"]

    def filled(found: re.Match[str]) -> str:
        letter = found[1]
        return draw(st.sampled_from(known[letter])) if letter.isupper() else f"{letter}{len(lines)}"

    for template in draw(st.lists(st.sampled_from(templates), min_size=2, max_size=10)):
        lines.append(SHOWN.sub(filled, template))
        made = re.match(r"\$([mtn])", template)
        if made is not None:
            known[made[1].upper()].append(f"{made[1]}{len(lines) - 1}")
    known["T"] = list(dict.fromkeys([*known["T"], *known["M"]]))
    results = [f"{name}.sum() * {n + 1}" for n, name in enumerate(known["T"])] + known["N"]
    lines.append(f"return {' + '.join(results)}")
    return "def forward(self, x):\n    " + "\n    ".join(lines) + "\n"


def built(source: str) -> nn.Module:
    name = f"<decides {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    scope = {"torch": torch, "nn": nn}
    exec(compile(source, name, "exec"), scope)
    model = type("Decides", (nn.Module,), {"forward": scope["forward"]})()
    model.register_buffer("buf", torch.zeros(4))
    return model


def answers(model: nn.Module, call: nn.Module) -> list[float | None]:
    """Return what ``call`` says to each input, and to each buffer of ``model``."""
    found: list[float | None] = []
    for seed, (x, buffer) in enumerate(INPUTS):
        model.buf.copy_(buffer)
        torch.manual_seed(seed)
        try:
            value = call(x.clone())
        except (RuntimeError, IndexError):
            found.append(None)
            continue
        found.append(float(value[""] if isinstance(value, dict) else value))
    return found


def check_names(source: str) -> None:
    """Compare the names of both backends, where fx serves."""
    try:
        names = featuretap.get_graph_node_names(built(source), backend="fx")
    except featuretap.UntraceableModelError:
        return
    example = (INPUTS[0][0].clone(),)
    model = built(source)
    model.buf.copy_(INPUTS[0][1])
    watched = featuretap.get_graph_node_names(model, example_args=example, backend="hooks")
    assert names == watched, source


@given(source=forwards())
@settings(
    deadline=None,
    max_examples=COUNT or 120,
    derandomize=not COUNT,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
def test_V2_random_decisions_are_those_of_the_model_or_refused(backend, source):
    model = built(source)
    expected = answers(model, model)
    assume(None not in expected)
    model = built(source)
    try:
        extractor = featuretap.create_feature_extractor(model, "", backend=backend)
    except featuretap.UntraceableModelError as error:
        assert backend == "fx"
        event(str(error).partition("Error: ")[2].partition(". Ways out")[0])
        return
    event("served")
    if backend == "hooks":
        check_names(source)
    for value, found in zip(expected, answers(model, extractor), strict=True):
        assert value == found or (math.isnan(value) and math.isnan(found)), source
