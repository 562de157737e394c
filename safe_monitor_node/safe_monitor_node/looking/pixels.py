# SPDX-License-Identifier: Apache-2.0
"""Converts camera images to colour pictures and back, without cv_bridge.

cv_bridge needs the NumPy version that it was built with. It is not needed for these encodings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_feature_bridge.errors import SafeError

Picture = NDArray[np.uint8]
"""Shape (height, width, 3): blue, green, red, as OpenCV has them."""


class PixelsError(SafeError):
    """An image cannot be read. The text describes the message."""


@dataclass(frozen=True)
class _Encoding:
    dtype: str
    channels: int
    order: tuple[int, ...] = ()


_ENCODINGS = {
    'bgr8': _Encoding('u1', 3, (0, 1, 2)),
    'rgb8': _Encoding('u1', 3, (2, 1, 0)),
    'bgra8': _Encoding('u1', 4, (0, 1, 2)),
    'rgba8': _Encoding('u1', 4, (2, 1, 0)),
    'mono8': _Encoding('u1', 1),
    '8UC1': _Encoding('u1', 1),
    '8UC3': _Encoding('u1', 3, (0, 1, 2)),
    'mono16': _Encoding('u2', 1),
    '16UC1': _Encoding('u2', 1),
}
KNOWN = tuple(_ENCODINGS)
"""Encodings that :func:`to_picture` reads."""

_FAR = 98.0


@dataclass(frozen=True)
class RawImage:
    """The fields of a ``sensor_msgs/Image`` that describe its pixels.

    Attributes
    ----------
    encoding : str
    height, width : int
    step : int
        Bytes of a row, which can have padding at its end.
    data : buffer
    big_endian : bool
    """

    encoding: str
    height: int
    width: int
    step: int
    data: Any
    big_endian: bool = False


def to_picture(image: RawImage) -> Picture:
    """Return an image as a picture with its own memory. You may draw into the picture.

    In a 16-bit image, such as a depth image, the grey levels are scaled from the smallest value to
    the 98 % quantile. The value 0 means that nothing was measured, and is black.

    Raises
    ------
    PixelsError
        The encoding is not one of :data:`KNOWN`, or the bytes do not fit the size.
    """
    encoding = _ENCODINGS.get(image.encoding)
    if encoding is None:
        raise PixelsError(
            where='image',
            expected=f'the encoding {", ".join(KNOWN)}',
            found=repr(image.encoding[:40]),
            advice='publish one of these, for example with image_proc, or install cv_bridge',
        )
    dtype = np.dtype(encoding.dtype).newbyteorder('>' if image.big_endian else '<')
    row = image.width * encoding.channels * dtype.itemsize
    data = np.frombuffer(image.data, dtype=np.uint8)
    if not (image.height > 0 and image.width > 0 and image.step >= row) or (
        data.size < image.height * image.step
    ):
        raise PixelsError(
            where=f'image of encoding {image.encoding}',
            expected='height x step bytes, with a step of at least '
            f'{encoding.channels * dtype.itemsize} x width',
            found=f'{data.size} bytes, height {image.height}, width {image.width}, '
            f'step {image.step}',
        )
    rows = data[: image.height * image.step].reshape(image.height, image.step)[:, :row]
    # A row with padding is not contiguous. Only contiguous bytes can be converted to another dtype.
    values = np.ascontiguousarray(rows).view(dtype).reshape(image.height, image.width, -1)
    if encoding.order:
        return np.ascontiguousarray(values[..., list(encoding.order)])
    grey = values[..., 0] if dtype.itemsize == 1 else _levels(values[..., 0])
    return np.repeat(grey[..., None], 3, axis=2)


def from_picture(picture: Picture, encoding: str) -> tuple[str, bytes]:
    """Return the encoding and the bytes of a picture: ``rgb8`` stays, others become ``bgr8``."""
    if encoding == 'rgb8':
        return 'rgb8', picture[..., ::-1].tobytes()
    return 'bgr8', picture.tobytes()


def _levels(values: NDArray[Any]) -> Picture:
    """Return grey levels of 16-bit values."""
    numbers = values.astype(np.float32)
    measured = numbers[numbers > 0]
    if not measured.size:
        return np.zeros(values.shape, np.uint8)
    low, high = float(measured.min()), float(np.percentile(measured, _FAR))
    share = np.clip((numbers - low) / max(high - low, 1.0), 0.0, 1.0)
    # Measured values are never black.
    return np.where(numbers > 0, 25 + 230 * share, 0).astype(np.uint8)
