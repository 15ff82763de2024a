"""featuretap: the values inside a PyTorch model, by name.

Where to read: :mod:`.naming` has the rule of names, :mod:`.tracing` runs a forward on stand-ins,
:mod:`.recording` is what that leaves, :mod:`.extractor` the module that is made of it. :mod:`.api`
speaks to the user, :mod:`.backends` finds who serves, :mod:`.fx_backend` is the one of this package.
"""

from .api import create_feature_extractor, get_graph_node_names
from .errors import (
    DifferentValuesError,
    FallbackWarning,
    NodeNotFoundError,
    NodeNotReachedError,
    UntraceableModelError,
)
from .names.node_names import NodeNames
from .reports import Check, Report
from .verifying import verify

__all__ = [
    "Check",
    "DifferentValuesError",
    "FallbackWarning",
    "NodeNames",
    "NodeNotFoundError",
    "NodeNotReachedError",
    "Report",
    "UntraceableModelError",
    "create_feature_extractor",
    "get_graph_node_names",
    "verify",
]
