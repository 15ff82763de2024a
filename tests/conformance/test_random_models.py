"""Rules N, V and M5 on random models.

``RANDOM_MODELS=5000`` tries that many, new ones each time.
"""

from __future__ import annotations

import os
import warnings

import torch
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st

import featuretap
from interpreter import Reference
from random_models import programs
from support import copied, identical

COUNT = int(os.environ.get("RANDOM_MODELS", "0"))
MODES = ("train", "eval")
CALLS = [(mode, batch) for mode in MODES for batch in (3, 2)]

many = settings(
    deadline=None,
    max_examples=COUNT or 50,
    derandomize=not COUNT,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def state_of(model):
    return copied(dict(model.state_dict()))


def references(program):
    """What each call must give, from the same state; models that torch refuses are not tried."""
    found = {}
    for mode, batch in CALLS:
        model = program.build().train(mode == "train")
        torch.manual_seed(1)
        try:
            output = model(*program.inputs(batch))
        except RuntimeError:
            assume(False)
        left = state_of(model)
        model = program.build().train(mode == "train")
        torch.manual_seed(1)
        reference = Reference(program.source, model, *program.inputs(batch))
        assert identical(copied(output), reference.calls[""]), "the reference is wrong"
        assert identical(left, state_of(model)), "the reference is wrong"
        reference.left = left
        found[mode, batch] = reference
    return found


def created(function, *args, **kwargs):
    """Call a function of featuretap; what fx refuses is counted, and not tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            made = function(*args, **kwargs)
        except featuretap.UntraceableModelError as error:
            if kwargs["backend"] != "fx":
                raise
            event(f"refused: {error}")
            assume(False)
    if kwargs["backend"] == "fx":
        missing = made.failures if isinstance(made, list) else made.missing_modes
        not_recorded = {**made.auto_leaves, **missing}
        for reason in not_recorded.values():
            event(f"not recorded: {reason}")
        assume(not not_recorded)
    return made


def check_calls(program, backend, found, requests, with_example, early_stop=True):
    model = program.build()
    state = state_of(model)
    example = {"example_args": program.inputs(3)} if with_example else {}
    before = torch.get_rng_state()
    extractor = created(
        featuretap.create_feature_extractor,
        model,
        train_return_nodes=requests["train"],
        eval_return_nodes=requests["eval"],
        backend=backend,
        early_stop=early_stop or backend == "fx",
        **example,
    )
    assert identical(state_of(model), state), "creating changed the model"
    assert torch.equal(torch.get_rng_state(), before)
    for mode, batch in (*CALLS, *CALLS):
        model.load_state_dict(state)
        extractor.train(mode == "train")
        torch.manual_seed(1)
        features = extractor(*program.inputs(batch))
        reference = found[mode, batch]
        expected = {**reference.names, **reference.calls}
        assert set(features) == set(requests[mode]), (mode, batch)
        for name in requests[mode]:
            assert identical(copied(features[name]), expected[name]), (mode, batch, name)
        if "" in requests[mode]:
            assert identical(state_of(model), reference.left), (mode, batch)


@many
@given(program=programs(), with_example=st.booleans())
def test_V1_random_models_every_node_is_the_real_value(backend, program, with_example):
    """All nodes asked for together; the state left is that of the model (M5)."""
    found = references(program)
    requests = {mode: [*found[mode, 3].names, *found[mode, 3].calls] for mode in MODES}
    check_calls(program, backend, found, requests, with_example)


@many
@given(program=programs(), with_example=st.booleans(), early_stop=st.booleans(), data=st.data())
def test_V1_random_models_requesting_one_node_never_changes_another(
    backend, program, with_example, early_stop, data
):
    found = references(program)
    requests = {}
    for mode in MODES:
        names = st.sampled_from([*found[mode, 3].names, *found[mode, 3].calls])
        requests[mode] = data.draw(st.lists(names, min_size=1, max_size=3, unique=True), mode)
    check_calls(program, backend, found, requests, with_example, early_stop)


@many
@given(program=programs())
def test_N_random_models_have_the_names_of_the_reference(backend, program):
    found = references(program)
    model = program.build()
    state = state_of(model)
    names = created(
        featuretap.get_graph_node_names, model, backend=backend, example_args=program.inputs(3)
    )
    assert identical(state_of(model), state), "listing changed the model"
    assert names.train == list(found["train", 3].names)
    assert names.eval == list(found["eval", 3].names)
