"""What is found out once about the modules that a model has, and used by each forward."""

from __future__ import annotations

from functools import cached_property

from torch import nn

from featuretap._compat import TREES
from featuretap.backends import Options
from featuretap.inspecting.reading import Forward, forward_of
from featuretap.keeping.outside import Roots, roots_that_keep, tensors_outside
from featuretap.modules import LeafRule, ModuleTree
from featuretap.standins.asked_types import AskedPlace
from featuretap.standins.asking import asked_in_held, questions_of

from ._compat import any_wrapped
from .calls.fast_paths import is_compiled, layers_that_take_note
from .calls.patching import Namespace
from .calls.places import places
from .calls.signatures import Arguments
from .guessing import input_names
from .inspecting.mentioned import mentioned_names
from .inspecting.own_code import OwnCode, own_code
from .inspecting.writable import TensorPlace, named_places
from .keeping.contents import Layout
from .keeping.stored import Stored
from .keeping.warm_caches import modules_with_caches

__all__ = ["Findings"]


class Findings:
    """Facts about a model, each found when it is first asked for.

    An object of its own, and no attributes of the extractor: ``torch.export`` opens the containers
    among those, and would find the globals of modules.

    Attributes:
        tree: the modules of the model.
        options: what the user said.
        is_leaf: which of them are not looked into.
        layout: how what they hold was laid out when it was last looked at.

    """

    def __init__(self, tree: ModuleTree, options: Options) -> None:
        self.tree = tree
        self.is_leaf = LeafRule(options.leaf_modules)
        self.layout: Layout | None = None
        self.options = options

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Node name -> argument of the model."""
        return input_names(self.tree)

    @cached_property
    def arguments(self) -> Arguments:
        """The arguments that the forward of the model takes."""
        return Arguments(self.tree.signature, self.options.concrete_args)

    @cached_property
    def places(self) -> list[Namespace]:
        """Where functions that are one node each are looked up."""
        return places(self.tree, self.options, mentioned_names(self.modules))

    @cached_property
    def asked_types(self) -> list[AskedPlace]:
        """Where the code looks ``type`` up."""
        found: list[AskedPlace] = []
        for module, forward in ((module, forward_of(module)) for module in self.modules):
            found += (*questions_of(forward).types, *asked_in_held(module, forward))
        places = [(space, name) for space, name in found if name == "type" and space is not TREES]
        return list({id(space): (space, name) for space, name in places}.values())

    @cached_property
    def unwatched_layers(self) -> list[nn.Module]:
        """The layers, of attention and compiled ones, that would notice a torch-function mode."""
        return list(layers_that_take_note(self.tree.model))

    @cached_property
    def compiled_layers(self) -> list[nn.Module]:
        """Those of them that are compiled, which must not find a mode wherever they are called."""
        return [layer for layer in self.unwatched_layers if is_compiled(layer)]

    @cached_property
    def caches(self) -> list[tuple[nn.Module, str]]:
        """The caches of what is computed from parameters."""
        return modules_with_caches(self.modules)

    @cached_property
    def modules(self) -> list[nn.Module]:
        """The modules of the model, and in the place of an extractor its own model."""
        return [vars(module).get("_model", module) for module in self.tree.paths.values()]

    @cached_property
    def must_end(self) -> bool:
        """Whether every forward must go to its end, whatever is wanted and whatever it shows."""
        own = self.own_code
        return own.switches_unseen or own.writes_unseen or any_wrapped(self.modules)

    @cached_property
    def named_places(self) -> list[TensorPlace]:
        """Where the modules keep tensors that their code names."""
        return named_places(self.modules, self.own_code.names)

    @cached_property
    def written_places(self) -> list[TensorPlace]:
        """Those of them that the code may write."""
        return self.named_places if self.own_code.writes_tensors else []

    @cached_property
    def own_code(self) -> OwnCode:
        """What the code of the modules may do."""
        return own_code(self.modules)

    @cached_property
    def forwards(self) -> frozenset[Forward]:
        """The forwards of the modules."""
        return frozenset(map(forward_of, self.modules))

    @cached_property
    def reaching_outside(self) -> Roots:
        """Where the forwards find what may change outside of the modules."""
        return roots_that_keep(self.forwards)

    @cached_property
    def writing_outside(self) -> frozenset[Forward]:
        """The forwards that may write a tensor which they find outside of the modules."""
        return frozenset(forward for forward in self.forwards if [*tensors_outside([forward])])

    @cached_property
    def storing(self) -> list[nn.Module]:
        """The modules that may keep something of what a forward computes."""
        return self.own_code.storing(self.modules)

    @cached_property
    def computes_alone(self) -> bool:
        """Whether no code of a forward keeps, switches or writes anything besides buffers of layers."""
        own = self.own_code
        writes = own.switches or own.writes_weights or own.writes_unseen or self.written_places
        return not (writes or self.storing or self.reaching_outside or self.writing_outside)

    @cached_property
    def stored(self) -> Stored:
        """The tensors that the modules keep."""
        return Stored(self.modules)
