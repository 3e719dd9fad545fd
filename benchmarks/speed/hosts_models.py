"""The models of other libraries that ``hosts.py`` measures, and ToMe's merging in the place of ENACT's clustering.

Shapes: B images, N pixels, d features, M clusters or merged tokens.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import enact
from common.errors import UserError

PLAIN, REGION, TOME = "plain", "region", "ToMe"
STRIDE = 3  # ToMe keeps at least one of STRIDE x STRIDE pixels, which leaves room for the N / M of ENACT


def _timm(name: str) -> Callable[[int, int], nn.Module]:
    def build(size: int, depth: int) -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, img_size=size, depth=depth, num_classes=0)

    return build


def _detr(size: int, depth: int) -> nn.Module:
    import transformers

    backbone = transformers.ResNetConfig(out_features=["stage4"])
    return transformers.DetrModel(transformers.DetrConfig(backbone_config=backbone, use_timm_backbone=False))


def _rt_detr(size: int, depth: int) -> nn.Module:
    import transformers

    backbone = transformers.RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"])
    return transformers.RTDetrModel(transformers.RTDetrConfig(backbone_config=backbone))


VITS = {"ViT-B/16": _timm("vit_base_patch16_224"), "DINOv2-B/14": _timm("vit_base_patch14_dinov2")}
MODELS = VITS | {"DETR": _detr, "RT-DETR": _rt_detr}
PARTS = {"ViT-B/16": "blocks", "DINOv2-B/14": "blocks", "DETR": "encoder", "RT-DETR": "encoder.aifi.0"}
DEPTH = 12  # blocks of both ViTs
CORNER = 224  # pixels


@dataclass(frozen=True)
class Merged(enact.Clusters):
    """What ToMe made of the pixels: as :class:`enact.Clusters`, of which attention asks for `index`, `pool` and `present` alone.

    Attributes:
        merge: (B, N, d) -> (B, M, d), means.
    """

    merge: Callable[[Tensor], Tensor] = field(kw_only=True)

    def pool(self, x: Tensor) -> Tensor:
        return self.merge(x)


class Merging(nn.Module):
    """In the place of ``W_prob``: the bipartite soft matching of tomesd, which merges the most similar pixels of a square map.

    Args:
        size: M.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, key: Tensor, key_padding_mask: Tensor | None = None) -> Merged:
        from tomesd.merge import bipartite_soft_matching_random2d

        batch, n = key.shape[:2]
        side = isqrt(n)
        merge, _ = bipartite_soft_matching_random2d(key, side, side, STRIDE, STRIDE, n - self.size, no_rand=True)
        nothing = key.new_zeros(batch, n)
        count = torch.full((batch,), self.size, device=key.device)
        return Merged(nothing, nothing, nothing.long(), nothing, count, self.size, False, merge=merge)


class Host:
    """A model, its images of white noise, and the part whose attention is patched, plain and otherwise, on one set of weights.

    Args:
        name: of `MODELS`.
        size: side of the images.
        depth: blocks of a ViT.
        batch_size: B.
        device: for the model.

    Attributes:
        methods: method -> the part in evaluation; plain, with ENACT, and for a ViT with ToMe at equal M.
        inputs: positional and named arguments of the part, of a pass of the whole model.
        clusters: of each attention.

    Raises:
        UserError: a library is missing.
    """

    def __init__(self, name: str, size: int, depth: int, batch_size: int, device: torch.device):
        try:
            self.model = MODELS[name](size, depth).eval().to(device)
            self.images = torch.randn(batch_size, 3, size, size, device=device)
            calibrate(self.model, self.images)
            self.inputs = self._inputs_of(PARTS[name])
            self.methods = {PLAIN: self.model.get_submodule(PARTS[name])}
            self._add(REGION, PARTS[name])
            with enact.record(self.methods[REGION]) as clusters:
                self.run(REGION)
            self.clusters = list(clusters.values())
            if name in VITS:
                self._add(TOME, PARTS[name])
                attentions = (module for module in self.methods[TOME].modules() if hasattr(module, "W_prob"))
                for attention, found in zip(attentions, self.clusters):
                    attention.W_prob = Merging(found.size)
                self.run(TOME)
        except ImportError as error:
            raise UserError(f"{name} needs {error.name}, which is missing: pip install timm transformers tomesd") from error

    @torch.no_grad()
    def run_whole(self) -> None:
        """An inference of the plain model."""
        self.model(self.images)

    @torch.no_grad()
    def run(self, method: str) -> None:
        """An inference of the part."""
        self._outputs(method)

    def kept_bytes(self, method: str) -> int:
        """What a forward pass of the part in training keeps for the backward pass, beyond the parameters."""
        known = {x.untyped_storage().data_ptr() for x in self.methods[method].parameters()}
        kept = {}

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            outputs = self._outputs(method)  # as long as they live, so does what is kept: no address comes twice
        del outputs
        return sum(kept.values())

    def _outputs(self, method: str) -> list[Tensor]:
        args, kwargs = self.inputs
        found = self.methods[method](*args, **kwargs)
        return tree_leaves(found.to_tuple() if hasattr(found, "to_tuple") else found)

    def _inputs_of(self, part: str) -> tuple[tuple, dict[str, Any]]:
        inputs = []
        hook = self.model.get_submodule(part).register_forward_pre_hook(lambda _, *given: inputs.append(given), with_kwargs=True)
        self.run_whole()
        hook.remove()
        return inputs[0]

    def _add(self, method: str, part: str) -> None:
        model = copy.deepcopy(self.model)
        enact.patch(model)
        self.methods[method] = model.get_submodule(part)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Gives every batch norm the statistics of its input, as those of a trained network fit its data; the images' corner suffices.

    Without it random features grow from block to block, and one pixel of them would have all the probability of eq. 4.
    """

    def take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [module for module in model.modules() if hasattr(module, "running_var")]
    handles = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    if norms:
        model(images[..., :CORNER, :CORNER])
    for handle in handles:
        handle.remove()
