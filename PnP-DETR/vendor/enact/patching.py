"""Plugging ENACT into other people's models, and looking inside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .attention import ClusteredAttention
from .clustering import Clusters, EntropyClustering


def outside_decoder(name: str, attention: nn.MultiheadAttention) -> bool:
    """The default choice of :func:`patch`: the paper clusters in the encoder only (section 3.1)."""
    return "decoder" not in name.lower()


def patch(
    model: nn.Module,
    where: Callable[[str, nn.MultiheadAttention], bool] = outside_decoder,
    **options: Any,
) -> list[str]:
    """Replaces the self-attention of a model's encoder by clustered attention, in place, sharing its parameters.

    Args:
        model: any module that contains ``nn.MultiheadAttention``.
        where: called with an attention's qualified name and the attention; says whether to replace it.
        options: how to cluster: ``clustering``, ``smoothing_sigma`` and the others of :class:`EntropyClustering`.

    Returns:
        The qualified names of the attentions that were replaced. Their new parameters, ``<name>.W_prob.weight`` and ``.bias``, must
        be given to an optimiser that exists already.

    Raises:
        ValueError: nothing was found to replace.
    """
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.MultiheadAttention) and not isinstance(module, ClusteredAttention) and where(name, module)
    }
    if not found or "" in found:
        raise ValueError(
            "no nn.MultiheadAttention to replace inside this module: pass a model that contains one, "
            "or use ClusteredAttention.from_attention for a single attention"
        )
    clustered = {  # a module that stands in two places stays one module
        id(module): ClusteredAttention.from_attention(module, **options) for module in found.values()
    }
    for name, module in found.items():
        model.set_submodule(name, clustered[id(module)])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # decided from its first layer when it was built, for a kernel that leaves ENACT out
    return list(found)


@contextmanager
def record(model: nn.Module) -> Iterator[dict[str, Clusters]]:
    """Collects the :class:`Clusters` of every ENACT module in ``model`` while the context lasts; no cost outside it.

    Yields:
        A dict that each forward pass fills: the qualified name of the :class:`EntropyClustering` -> what it found last.
    """
    records: dict[str, Clusters] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Clusters) -> None:
            records[name] = output

        return hook

    handles = [
        module.register_forward_hook(keep(name)) for name, module in model.named_modules() if isinstance(module, EntropyClustering)
    ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
