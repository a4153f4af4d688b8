"""The student of reverse distillation: a decoder that rebuilds its teacher's feature pyramid from a narrow bottleneck.

Blocks are those of Thomine and Snoussi 2024 (arXiv 2401.02287): convolution, ReLU, batch norm, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d, pad

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.anomaly import Fusion, LevelWeights, anomaly_map

__all__ = [
    "SSPCAB",
    "Attention",
    "Beside",
    "BottleneckAttention",
    "ConvReluNorm",
    "DecoderBlock",
    "PyramidStudent",
    "ReverseDecoder",
    "levels_of",
]


class ConvReluNorm(nn.Module):
    """Convolution without bias, ReLU, batch norm.

    Args:
        inputs, outputs: channels.
        kernel: 1 or 3 (padded by 1).
        stride: of the convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, outputs, h / stride, w / stride]."""
        out: Tensor = self.bn(torch.relu(self.conv(x)))
        return out


class Attention(nn.Module):
    """Gate of a shortcut: ``a = ReLU(conv(x))``, times a softmax over the width of what two further convolutions see of it.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """The gated map, of the same shape."""
        a = torch.relu(self.conv1(x))
        return self.conv3(torch.relu(self.conv2(a))).softmax(-1) * a


class BottleneckAttention(nn.Module):
    """Gate of the bottleneck: two 3x3 convolutions, the softmax of the second over the width times the first.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """The gated map, of the same shape."""
        a = torch.relu(self.conv1(x))
        return self.conv2(a).softmax(-1) * a


class SqueezeExcite(nn.Module):
    """Channels weighed by what their means say (Hu et al., 2018).

    Args:
        width: channels.
        reduction: by how much the hidden layer is narrower.
    """

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """The weighed map, of the same shape."""
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class SSPCAB(nn.Module):
    """A masked convolution (Ristea et al., 2022): each place is predicted from four corners around it, never from itself.

    Args:
        width: channels.
        kernel: side of each corner's kernel.
        dilation: places between the masked centre and a corner.
        reduction: of the squeeze and excitation behind.
    """

    def __init__(self, width: int, kernel: int = 1, dilation: int = 1, reduction: int = 8) -> None:
        super().__init__()
        self.pad, self.far = kernel + dilation, kernel + 2 * dilation + 1
        self.conv1, self.conv2, self.conv3, self.conv4 = (nn.Conv2d(width, width, kernel) for _ in range(4))
        self.se = SqueezeExcite(width, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """The prediction of every place, of the same shape."""
        wide, far = pad(x, [self.pad] * 4), self.far
        corners = (
            self.conv1(wide[:, :, :-far, :-far])
            + self.conv2(wide[:, :, far:, :-far])
            + self.conv3(wide[:, :, :-far, far:])
            + self.conv4(wide[:, :, far:, far:])
        )
        out: Tensor = self.se(torch.relu(corners))
        return out


class DecoderBlock(nn.Module):
    """A residual block that doubles the sides (stride 2) or keeps them.

    Args:
        inputs, outputs: channels.
        stride: 2 or 1.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.upsample: nn.Module | None = None
        if stride == 2:
            self.conv1: nn.Module = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
            self.upsample = nn.Sequential(
                nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), nn.BatchNorm2d(outputs)
            )
        else:
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            if inputs != outputs:
                self.upsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, outputs, stride * h, stride * w]."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.upsample is None else self.upsample(x)))


def levels_of(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """A teacher's pyramid as the four levels that a decoder rebuilds: the first pooled to the sides of the second.

    Args:
        pyramid: maps [N, C_l, h_l, w_l], the finest first; four or more, of which the first four are taken.

    Raises:
        ShapeError: fewer levels, or sides that do not halve from the second on.
    """
    if len(pyramid) < 4:
        raise ShapeError("teacher", given=f"{len(pyramid)} levels", expected="a pyramid of at least four")
    first, *rest = pyramid[:4]
    sides = [tuple(f.shape[-2:]) for f in (first, *rest)]
    if sides[0] == (2 * sides[1][0], 2 * sides[1][1]):
        first = max_pool2d(first, 3, stride=2, padding=1)
        sides[0] = tuple(first.shape[-2:])
    wanted = [sides[0], sides[0], (sides[0][0] // 2, sides[0][1] // 2), (sides[0][0] // 4, sides[0][1] // 4)]
    if sides != wanted or sides[0][0] % 8 or sides[0][1] % 8:
        raise ShapeError(
            "teacher",
            f"its levels have the sides {[list(s) for s in sides]}",
            expected="sides that halve from level to level, the coarsest even",
            remedy="set task.size to a multiple of 32 (64, 128, 256)",
        )
    return [first, *rest]


class ReverseDecoder(nn.Module):
    """Rebuilds four levels of features from a bottleneck of all of them, and from shortcuts out of the level below each.

    Sides are those of what comes in: nothing is fixed to images of 256 pixels.

    Args:
        widths: channels of the four levels; the published ones are those of a ResNet-34, (64, 64, 128, 256).
        shortcuts: gate what is decoded by the level below it; without them ("DG") the decoder holds for other fabrics.
        attention: the gates of shortcuts and bottleneck.
        sspcab: the masked convolution in the bottleneck.

    Example:
        >>> net = ReverseDecoder((64, 64, 128, 256))
        >>> sum(p.numel() for p in net.parameters())
        10800256
    """

    def __init__(
        self, widths: Sequence[int], *, shortcuts: bool = True, attention: bool = True, sspcab: bool = True
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ConfigError("widths", given=list(widths), expected="the channels of four levels")
        d0, d1, d2, d3 = self.widths = tuple(widths)
        self.shortcuts = shortcuts
        cbr = ConvReluNorm
        self.b1, self.b2 = (nn.Sequential(cbr(d, d2, 1, 2), cbr(d2, d3, 1, 2)) for d in (d0, d1))
        self.b3, self.b4 = cbr(d2, d3, 1, 2), cbr(d3, d3)
        self.squeeze = nn.Sequential(
            *(cbr(d3, d3), cbr(d3, d3), cbr(d3, 2 * d3, 1, 2)),
            *([SSPCAB(2 * d3)] if sspcab else []),
            *([BottleneckAttention(2 * d3)] if attention else []),
        )
        if shortcuts:
            gates = [(d0, d1), (d1, d2), (d2, d3)]
            self.gates = nn.ModuleList(
                nn.Sequential(cbr(i, o, 3), *([Attention(o)] if attention else [])) for i, o in gates
            )
        block = DecoderBlock
        self.up3 = nn.Sequential(block(2 * d3, d3, 2), block(d3, d3))
        self.up2 = nn.Sequential(block(d3, d2, 2), block(d2, d2))
        self.up1 = nn.Sequential(block(d2, d1, 2), block(d1, d1))
        self.up0 = nn.Sequential(block(d1, d0), block(d0, d0))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the shapes of ``levels``, four maps [N, C_l, h_l, w_l] as `levels_of` gives them."""
        f0, f1, f2, f3 = levels
        x = self.squeeze(self.b1(f0) + self.b2(f1) + self.b3(f2) + self.b4(f3))  # [N, 2 C_3, h_3 / 2, w_3 / 2]
        x = self._gated(self.up3(x), 2, f2)
        a = self._gated(self.up2(x), 1, f1)
        b = self._gated(self.up1(a), 0, f0)
        return [self.up0(b), b, a, x]

    def _gated(self, x: Tensor, gate: int, below: Tensor) -> Tensor:
        """What is decoded, with what its shortcut says of the level below."""
        if not self.shortcuts:
            return x
        for layer in self.gates[gate].children():  # the convolution, then the attention
            below = layer(below)
            if below.shape[-2:] != x.shape[-2:]:
                below = adaptive_avg_pool2d(below, (x.shape[-2], x.shape[-1]))
        return x + below


class PyramidStudent(nn.Module):
    """A decoder of its teacher's pyramid that answers with the anomaly map: where it fails to rebuild what it is shown.

    Args:
        size: (H, W) of the maps: the image's.
        widths: channels of the four levels; ``None`` until `grow` is told.
        levels: which of them are compared.
        level_weights, fusion, sigma, normalise: as in ``limbeck.functional.anomaly.anomaly_map``.
        shortcuts, attention, sspcab: as in `ReverseDecoder`.

    Attributes:
        fed_by: the role whose output it is fed, in place of a batch.
    """

    fed_by = "teacher"

    def __init__(
        self,
        size: tuple[int, int],
        widths: Sequence[int] | None = None,
        *,
        levels: Sequence[int] = (0, 1, 2, 3),
        level_weights: LevelWeights = "area",
        fusion: Fusion = "sum",
        sigma: float = 4.0,
        normalise: bool = True,
        shortcuts: bool = True,
        attention: bool = True,
        sspcab: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.levels, self.normalise = size, tuple(levels), normalise
        self.level_weights: LevelWeights = level_weights
        self.fusion: Fusion = fusion
        self.sigma = sigma
        self.switches = {"shortcuts": shortcuts, "attention": attention, "sspcab": sspcab}
        self.decoder: ReverseDecoder | None = None
        if widths is not None:
            self.grow(widths)

    def grow(self, widths: Sequence[int]) -> None:
        """Make the decoder for a teacher's channels, where it is not there."""
        if self.decoder is None:
            self.decoder = ReverseDecoder(widths, **self.switches)

    def rebuilt(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The levels that are compared, as rebuilt and as the teacher shows them."""
        assert self.decoder is not None
        shown = levels_of(pyramid)
        made = self.decoder(shown)
        return [made[i] for i in self.levels], [shown[i] for i in self.levels]

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Anomaly maps [N, 1, H, W] of a teacher's pyramid."""
        made, shown = self.rebuilt(pyramid)
        return anomaly_map(
            made,
            shown,
            self.size,
            sigma=self.sigma,
            level_weights=self.level_weights,
            fusion=self.fusion,
            normalise=self.normalise,
        ).unsqueeze(1)


class Beside(nn.Module):
    """A student that sees the image itself, beside its teacher (student-teacher feature pyramid matching).

    Args:
        teacher, student: pyramids of the same channels.
        sigma: of the Gaussian that smooths maps, in pixels.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, sigma: float = 4.0) -> None:
        super().__init__()
        self.teacher, self.student, self.sigma = teacher, student, sigma

    def forward(self, x: Tensor) -> Tensor:
        """Anomaly maps [N, 1, H, W] of pictures: the product of the gaps of the second to fourth level."""
        t, s = (levels_of(net(x))[1:] for net in (self.teacher, self.student))
        size = (x.shape[-2], x.shape[-1])
        return anomaly_map(s, t, size, sigma=self.sigma, level_weights="equal", fusion="product").unsqueeze(1)
