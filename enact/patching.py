"""Plugging ENACT into other people's models, and looking inside."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from .clustering import Clusters, EntropyClustering
from .hosts import adapters_of

SUPPORTED = (
    "torch (nn.MultiheadAttention), timm (ViT, DINOv2, DINOv3 and alike) or transformers >= 5.20 (DETR, Conditional DETR, RT-DETR, "
    "RT-DETRv2, D-FINE, ViT, DINOv2, DINOv3)"
)


def outside_decoder(model: nn.Module) -> Callable[[str, nn.Module], bool]:
    """The default choice of :func:`patch`: the paper clusters in the encoder only (section 3.1)."""
    kinds = (nn.TransformerDecoder, nn.TransformerDecoderLayer)
    inside = tuple(f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, kinds))
    return lambda name, attention: "decoder" not in name.lower() and not name.startswith(inside)


def patch(
    model: nn.Module,
    where: Callable[[str, nn.Module], bool] | None = None,
    prefix: int | None = None,
    **options: Any,
) -> list[str]:
    """Makes the self-attention of a model's encoder clustered attention, in place, with the parameters that it has.

    Known are ``nn.MultiheadAttention``, timm's attention of ViTs, and Hugging Face's of DETR, Conditional DETR, RT-DETR, RT-DETRv2,
    D-FINE, ViT, DINOv2 and DINOv3 (:mod:`enact.hosts`). Tokens in front of the pixels, such as class and register tokens, stay as
    they are. Masks may hide whole keys, such as padding; others end as a ValueError in the forward pass.

    Args:
        model: any module that contains such an attention.
        where: called with an attention's qualified name and the attention; says whether to cluster it. By default all are, but
            for those of a decoder.
        prefix: number of tokens in front of the pixels, for a model that does not tell; by default what timm, transformers and
            torchvision say, and 0 for other models.
        options: how to cluster: ``clustering``, ``smoothing_sigma`` and the others of :class:`EntropyClustering`.

    Returns:
        The qualified names of the attentions that were clustered. Their new parameters, ``<name>.W_prob.weight`` and ``.bias``,
        must be given to an optimiser that exists already.

    Raises:
        ValueError: nothing was found to cluster.
    """
    where = where or outside_decoder(model)
    named = dict(model.named_modules(remove_duplicate=False))
    found = [
        (adapter, name)
        for adapter in adapters_of(model)
        for name, module in named.items()
        if adapter.is_attention(module) and not _is_clustered(module) and where(name, module)
    ]
    if not found:
        raise ValueError(_why_nothing(model))
    clustered: dict[int, nn.Module] = {}  # a module that stands in two places stays one module
    for adapter, name in found:
        attention = named[name]
        if isinstance(attention, nn.MultiheadAttention) and not name:
            raise ValueError("an nn.MultiheadAttention itself cannot be patched: call ClusteredAttention.from_attention")
        if id(attention) not in clustered:
            tokens = adapter.prefix_of(attention, _ancestors(named, name)) if prefix is None else prefix
            clustered[id(attention)] = adapter.cluster(attention, tokens, options)
    for _, name in found:
        if clustered[id(named[name])] is not named[name]:
            model.set_submodule(name, clustered[id(named[name])])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # decided from its first layer when it was built, for a kernel that leaves ENACT out
    names = {name for _, name in found}
    return [name for name in named if name in names]


def _is_clustered(attention: nn.Module) -> bool:
    return any(isinstance(module, EntropyClustering) for module in attention.children())


def _ancestors(named: Mapping[str, nn.Module], name: str) -> list[nn.Module]:
    """The modules that the one of this name is inside of, the innermost first."""
    ancestors = []
    while name:
        name = name.rpartition(".")[0]
        ancestors.append(named[name])
    return ancestors


def _why_nothing(model: nn.Module) -> str:
    """A sentence for a model in which nothing can be clustered."""
    kinds = {type(module).__name__ for module in model.modules()}
    if any(_is_clustered(module) for module in model.modules()):
        return "nothing left to patch: this model's attention is clustered already, and is changed by building it anew"
    if any("Swin" in kind or "Window" in kind for kind in kinds):
        return "nothing to patch: this model attends inside windows of few pixels, which clusters are too long for"
    if any("Deformable" in kind for kind in kinds):
        return "nothing to patch: this model's encoder samples a few keys for each query, and has no dense attention to cluster"
    return f"nothing to patch: pass a model with an attention of {SUPPORTED}, outside its decoder or chosen by where"


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
