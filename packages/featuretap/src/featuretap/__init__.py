"""featuretap: the values inside a PyTorch model, by name."""

from .api import create_feature_extractor, get_graph_node_names
from .errors import (
    FallbackWarning,
    NodeNotFoundError,
    NodeNotReachedError,
    UntraceableModelError,
)
from .node_names import NodeNames

__all__ = [
    "FallbackWarning",
    "NodeNames",
    "NodeNotFoundError",
    "NodeNotReachedError",
    "UntraceableModelError",
    "create_feature_extractor",
    "get_graph_node_names",
]
