"""What featuretap notes on a node of a graph, by its key in ``torch.fx.Node.meta``."""

from __future__ import annotations

__all__ = [
    "CALLS",
    "GIVEN_NAME",
    "KEPT",
    "KIND",
    "NAME",
    "OPERATION",
    "REGIONS",
    "SCOPE",
    "STORAGE",
]

#: The path of the module whose forward made it. Noted by the trace.
SCOPE = "featuretap_scope"
#: The regions (``no_grad``, ``autocast``) that it was made in, if any. Noted by the trace.
REGIONS = "featuretap_regions"
#: What the operation is called, where its target does not say so. Noted by the trace.
OPERATION = "featuretap_operation"
#: Which memory a real tensor lies in. Noted by the trace.
STORAGE = "featuretap_storage"
#: The type of its value, once somebody has asked.
KIND = "featuretap_kind"
#: The name that it must have, of an extractor that is traced again.
GIVEN_NAME = "featuretap_given_name"
#: Its name, if it is a node of the model's.
NAME = "featuretap_name"
#: Path and value of each call of a module that ends after it. Noted by the pruning.
CALLS = "featuretap_calls"

#: What a pickled graph keeps as it is.
KEPT = (NAME, SCOPE, REGIONS, "nn_module_stack")
