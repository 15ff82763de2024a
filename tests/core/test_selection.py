"""Selections, on their own and as text."""

from __future__ import annotations

import pytest
from torch import nn

from featuretap.backends import Options
from featuretap.modes import record_modes
from featuretap.selection import Selection, normalize
from zoo import NestedScopes


def select(request):
    recording = record_modes(NestedScopes(), Options())["train"]
    return Selection.resolve(normalize(request), recording, "train")


def test_a_selection_is_an_ordered_mapping_that_prints_as_a_table():
    selection = select({"": "out", "stage.0.lin": "first"})
    assert list(selection) == ["first", "out"]
    assert selection["first"].name == "stage.0.lin"
    assert str(selection) == "key    node\nfirst  stage.0.lin\nout"
    assert repr(selection) == "Selection({'first': 'stage.0.lin', 'out': ''})"
    assert selection.names_to_keys == {"stage.0.lin": "first", "": "out"}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("a", {"a": None}),
        (["a", "b"], {"a": None, "b": None}),
        (("a",), {"a": None}),
        ({"a": "k"}, {"a": "k"}),
        ([{nn.ReLU}, "a"], {nn.ReLU: None, "a": None}),
        (nn.ReLU, {nn.ReLU: None}),
    ],
)
def test_every_form_is_a_mapping_of_entries_to_keys(request_, expected):
    assert normalize(request_) == expected
