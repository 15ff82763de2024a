"""The examples of the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import featuretap
import featuretap_hooks

MODULES = sorted(
    module.name
    for package in (featuretap, featuretap_hooks)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
)
WITH_EXAMPLES = {
    "featuretap.api",
    "featuretap.errors",
    "featuretap.inspecting.remembering",
    "featuretap.names.alignment",
    "featuretap.names.named_otherwise",
    "featuretap.naming",
    "featuretap.verifying",
    "featuretap_hooks.api",
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted or name not in WITH_EXAMPLES
