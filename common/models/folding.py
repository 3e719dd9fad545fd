"""Convolutions that take the constant batch norm behind them into their weights.

Where a batch norm is a constant affine map, ``norm(conv(x, w)) = conv(x, scale * w, shift)``: the map is applied to the weights,
which are few, instead of the features, which are many, and the convolution's output need not be kept for it. Gradients reach ``w``
through the product. Modules and state dicts keep their names and contents.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d


class FoldedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """A frozen batch norm that the convolution before it applies."""

    folded = True

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        return x


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that the convolution before it applies in evaluation, when its statistics are constants."""

    @property
    def folded(self) -> bool:
        return not self.training

    scale_and_shift = FoldedFrozenBatchNorm2d.scale_and_shift

    def forward(self, x: Tensor) -> Tensor:
        return x if self.folded else super().forward(x)


class FoldedConv2d(nn.Conv2d):
    """A convolution without bias that applies the batch norm behind it, see :func:`fold_batch_norms`.

    Without gradients the product of weights and scale is computed once, and again where a weight or statistic has changed.
    """

    def follow(self, norm: FoldedFrozenBatchNorm2d | FoldedBatchNorm2d) -> None:
        """Names the norm behind this convolution, which stays a module of whatever holds it."""
        self._norm = (norm,)  # in a tuple, or it would become a module of this one too, and stand twice in the state dict
        self._product: tuple[Tensor, Tensor] | None = None
        self._versions: tuple = ()

    def train(self, mode: bool = True) -> "FoldedConv2d":
        if mode:
            self._product = None  # frees the copy of the weights before they change
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self._norm[0].folded:
            return super().forward(x)
        if torch.compiler.is_compiling():
            return self._conv_forward(x, *self._fold())
        if torch.is_grad_enabled():
            self._product = None  # a step may follow, and fused optimisers change weights without raising their version
            return self._convolve(x, *self._fold())
        return self._convolve(x, *self._kept())

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """``conv(x)``, on a CPU by the kernels that are fast and exact there."""
        if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
            return self._conv_forward(x, weight, bias)
        if self.kernel_size == (1, 1) and self.stride != (1, 1):
            # oneDNN walks over all pixels for the gradient of the weights, though most have no part in it.
            return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], weight, bias)
        if self._is_better_contiguous():
            return self._conv_forward(x.contiguous(), weight.contiguous(), bias).contiguous(memory_format=torch.channels_last)
        return self._conv_forward(x, weight, bias)

    def _is_better_contiguous(self) -> bool:
        """Whether to leave channels-last for this convolution.

        With the channels innermost, oneDNN adds up all channels of a window in one chain of float32 sums, and rounds two to three
        times as much as its kernels for the other layout: results are computed with these. In training, where the way back costs
        more than that is worth, they are taken where the gradient of the weights is much faster: with a stride.
        """
        worth_it = not torch.is_grad_enabled() or self.stride != (1, 1)
        return worth_it and self.kernel_size == (3, 3) and self.in_channels >= 128

    def _kept(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, those of the last time if nothing has changed."""
        [norm] = self._norm
        sources = (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        versions = tuple((x.data_ptr(), x.dtype, 0 if x.is_inference() else x._version) for x in sources)
        if self._product is None or versions != self._versions:
            weight, bias = self._fold()
            if weight.device.type == "cpu" and self._is_better_contiguous():
                weight = weight.contiguous()
            self._product, self._versions = (weight, bias), versions
        return self._product

    def _fold(self) -> tuple[Tensor, Tensor]:
        scale, shift = self._norm[0].scale_and_shift()
        return self.weight * scale[:, None, None, None], shift


def fold_batch_norms(module: nn.Module) -> None:
    """Makes every convolution apply the batch norm behind it, in place.

    Pairs are found by torchvision's names for the parts of a ResNet: ``conv1`` and ``bn1``, ..., and ``downsample.0`` and ``.1``.

    Args:
        module: its batch norms are of the classes above.
    """
    for name, conv in module.named_modules():
        if isinstance(conv, nn.Conv2d):
            parent, _, last = name.rpartition(".")
            norm = module.get_submodule(parent).get_submodule(last.replace("conv", "bn") if last.startswith("conv") else "1")
            conv.__class__ = FoldedConv2d  # differs in its forward pass alone: the weights and settings stay where they are
            conv.follow(norm)


def synchronise_batch_norms(model: nn.Module) -> nn.Module:
    """The model, whose batch norms share their statistics with the other processes' from now on.

    A convolution that follows a norm keeps asking the one that is replaced, whose mode no longer changes: in training, as here, it
    is never folded, and the new norm is applied on its own.
    """
    return nn.SyncBatchNorm.convert_sync_batchnorm(model.train())
