"""featuretap: the values inside a PyTorch model, by name."""

from .api import create_feature_extractor, get_graph_node_names
from .errors import (
    DifferentValuesError,
    FallbackWarning,
    NodeNotFoundError,
    NodeNotReachedError,
    UntraceableModelError,
)
from .node_names import NodeNames
from .verifying import verify

__all__ = [
    "DifferentValuesError",
    "FallbackWarning",
    "NodeNames",
    "NodeNotFoundError",
    "NodeNotReachedError",
    "UntraceableModelError",
    "create_feature_extractor",
    "get_graph_node_names",
    "verify",
]
