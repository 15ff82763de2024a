"""Names do not depend on the version of torch: nox runs these tests on eight of them (rule N8).

``tests/models/golden_names.py`` writes what is compared here. No name of these models differs between
torchvision 0.15 and 0.29, so there is no list of exceptions.
"""

from __future__ import annotations

import golden_names
import pytest

from zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_N8_the_zoo_has_the_same_names_on_every_torch_and_device(backend, device, name):
    assert (
        golden_names.zoo_names(name, backend, device=device)
        == golden_names.golden_zoo(backend)[name]
    )


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("name", golden_names.TORCHVISION)
def test_N8_torchvision_models_have_the_same_names_on_every_torch_device_and_batch(
    backend, device, name, batch
):
    names = golden_names.torchvision_names(name, backend, batch=batch, device=device)
    assert names == golden_names.golden(name, backend)


def test_N8_no_golden_names_are_left_behind():
    """What is written down belongs to a model that is compared."""
    assert set(golden_names.golden_zoo("fx")) == set(ZOO)
    files = {path.name.split(".")[0] for path in golden_names.FOLDER.iterdir()}
    assert files == {"zoo", *golden_names.TORCHVISION}
