# SPDX-License-Identifier: Apache-2.0
"""A conditional 1-D U-Net, based on the U-Net of Diffusion Policy (Chi et al., arXiv 2303.04137).

The input is a sequence and a time. The time and a condition scale and shift the channels of each
block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

# Up to this length a matrix product is faster than the convolution, for weights of any size.
_FEW_ROWS = 16


def sinusoidal_embedding(time: torch.Tensor, width: int) -> torch.Tensor:
    """Return times (B,) as (B, width): sines, then cosines, of geometric frequencies."""
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, device=time.device) * (-math.log(10000.0) / (half - 1))
    )
    angles = time[:, None].to(frequencies.dtype) * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Convolution(nn.Conv1d):
    """A 1-D convolution that is fast for a live step.

    In one live step, the deeper levels have only a few positions. For such short inputs, a matrix
    product with a few rows is faster than a convolution.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, channels_in, L)`` to ``(B, channels_out, L')``."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        positions = (x.shape[2] + 2 * padding - kernel) // stride + 1
        rows = x.shape[0] * positions
        if torch.is_grad_enabled() or rows > _FEW_ROWS:
            return super().forward(x)
        padded = nn.functional.pad(x, (padding, padding))
        windows = padded.unfold(2, kernel, stride).transpose(1, 2).reshape(rows, -1)
        out = nn.functional.linear(windows, self.weight.flatten(1), self.bias)
        return out.reshape(x.shape[0], positions, -1).transpose(1, 2)


def _convolution(channels_in: int, channels_out: int, kernel: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        Convolution(channels_in, channels_out, kernel, padding=kernel // 2),
        nn.GroupNorm(groups, channels_out),
        nn.Mish(),
    )


class ResidualBlock(nn.Module):
    """Two convolutions with the condition applied between them, and a skip connection.

    ``scaled``: the condition scales and shifts the channels; otherwise it shifts them only.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        condition: int,
        kernel: int,
        groups: int,
        scaled: bool,
    ) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, kernel, groups)
        self.second = _convolution(channels_out, channels_out, kernel, groups)
        self.scaled = scaled
        self.condition = nn.Linear(condition, channels_out * (2 if scaled else 1))
        self.skip: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.skip = Convolution(channels_in, channels_out, 1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map ``(B, channels_in, L)`` and ``(B, condition)`` to ``(B, channels_out, L)``.

        The Mish activation has already been applied to the condition, because it is the same for
        all blocks.
        """
        out = self.first(x)
        film = self.condition(condition)[:, :, None]
        if self.scaled:
            scale, shift = film.chunk(2, dim=1)
            out = torch.addcmul(shift, scale, out)
        else:
            out = out + film
        return self.second(out) + self.skip(x)


def smallest_group(rows: int, widths: Sequence[int], groups: int, final_groups: int) -> int:
    """Return the number of values in the smallest group that a :class:`UNet` normalises.

    Parameters
    ----------
    rows : int
        Length L of the sequence.
    widths, groups, final_groups
        As in :class:`UNet`.
    """
    last = len(widths) - 1
    # The decoder blocks of a level have the length of the level below.
    lengths = [rows >> min(level + 1, last) for level in range(len(widths))]
    inside = [width // groups * length for width, length in zip(widths, lengths, strict=True)]
    return min(*inside, widths[0] // final_groups * rows)


class UNet(nn.Module):
    """A U-Net over ``(B, L, channels)``; ``L`` must be a multiple of :attr:`multiple`.

    Parameters
    ----------
    channels : int
        Channels of the input and the output.
    condition : int
        Width of the condition that is concatenated with the embedded time. With 0 there is no
        condition and no scaling.
    widths : sequence of int
        Channels of each level, at half the length of the level above.
    time_width : int
        Width of the embedded time.
    kernel : int
        Width of the convolutions; odd.
    groups, final_groups : int
        Groups of the normalisation, inside and before the output.
    """

    def __init__(
        self,
        channels: int,
        condition: int,
        *,
        widths: Sequence[int],
        time_width: int,
        kernel: int,
        groups: int,
        final_groups: int = 8,
    ) -> None:
        super().__init__()
        scaled = condition > 0
        both = time_width + condition
        self.multiple = 2 ** (len(widths) - 1)
        self.time_width = time_width
        self.time = nn.Sequential(
            nn.Linear(time_width, 4 * time_width),
            nn.Mish(),
            nn.Linear(4 * time_width, time_width),
        )

        def block(channels_in: int, channels_out: int) -> ResidualBlock:
            return ResidualBlock(channels_in, channels_out, both, kernel, groups, scaled)

        # A level is two blocks and a change of length.
        self.down = nn.ModuleList()
        for level, (above, width) in enumerate(
            zip([channels, *widths[:-1]], widths, strict=True), start=1
        ):
            halve = Convolution(width, width, 3, 2, 1) if level < len(widths) else nn.Identity()
            self.down.append(nn.ModuleList([block(above, width), block(width, width), halve]))
        self.middle = nn.ModuleList([block(widths[-1], widths[-1]) for _ in range(2)])
        self.up = nn.ModuleList()
        for width, below in zip(widths[-2::-1], widths[:0:-1], strict=True):
            double = nn.ConvTranspose1d(width, width, 4, 2, 1)
            self.up.append(nn.ModuleList([block(2 * below, width), block(width, width), double]))
        self.final = nn.Sequential(
            _convolution(widths[0], widths[0], kernel, final_groups),
            Convolution(widths[0], channels, 1),
        )

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map ``x`` (B, L, channels) at ``time`` (B,), ``condition`` (B, C), to the same shape."""
        embedded = self.time(sinusoidal_embedding(time, self.time_width).to(x.dtype))
        if condition is not None:
            embedded = torch.cat([embedded, condition], dim=-1)
        embedded = nn.functional.mish(embedded)
        x = x.transpose(1, 2)
        kept = []
        for level in self.down:
            first, second, halve = level.children()
            x = second(first(x, embedded), embedded)
            kept.append(x)
            x = halve(x)
        for block in self.middle:
            x = block(x, embedded)
        # The output of the uppermost level is not used again: therefore the decoder has one level
        # fewer than the encoder.
        for level in self.up:
            first, second, double = level.children()
            x = torch.cat([x, kept.pop()], dim=1)
            x = double(second(first(x, embedded), embedded))
        return self.final(x).transpose(1, 2)
