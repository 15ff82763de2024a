"""Returns what happens inside a PyTorch model, for models that ``torch.fx`` cannot trace.

The same two functions as :mod:`featuretap`, with the same names of nodes; the values are taken from
the model's real forward as it runs.

Where to read: :mod:`.recorder` sees operations and names them, :mod:`.scopes` says which module runs,
:mod:`.captures` keeps the requested values, :mod:`.forwards` is one call of an :mod:`.extractor`;
:mod:`.plan` finds the cheapest hooks for a request.
"""

from .api import create_feature_extractor, get_graph_node_names

__all__ = ["create_feature_extractor", "get_graph_node_names"]
