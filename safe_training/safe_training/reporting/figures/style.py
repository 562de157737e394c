# SPDX-License-Identifier: Apache-2.0
"""Common style of all figures: colours, markers, legends, saving."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vla_feature_bridge.atomic import replaced_file
from vla_feature_bridge.errors import SafeError

# Okabe-Ito: these colours can be distinguished with every type of colour vision.
FAILURE = '#D55E00'
SUCCESS = '#0072B2'
BAND = '#009E73'
OKABE_ITO = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#000000', '#999999')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')
LINE_STYLES = ('-', '--', ':', '-.')

# With more points than this, vector files contain the points as an image. The axes are still vector
# graphics.
VECTOR_POINTS = 4000


class FigureError(SafeError):
    """A figure cannot be drawn from the data. The message contains what is missing."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, completely or not at all."""
    undated = {'.svg': {'Date': None}, '.pdf': {'CreationDate': None}}.get(path.suffix)
    with replaced_file(path) as aside, matplotlib.rc_context({'svg.hashsalt': path.stem}):
        figure.savefig(aside, dpi=130, metadata=undated)


def svg(figure: Figure) -> str:
    """Return a figure as SVG that needs no font and no other file."""
    text = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'path', 'svg.hashsalt': 'safe'}):
        figure.savefig(text, format='svg', dpi=110, metadata={'Date': None})
    return text.getvalue()


def finite(threshold: np.ndarray) -> np.ndarray:
    """Return a threshold in which infinity is replaced by NaN, so that it is not drawn."""
    return np.where(np.isfinite(threshold), threshold, np.nan)


def open_axis(axis: Axes) -> None:
    """Remove the top and right border lines."""
    axis.spines[['top', 'right']].set_visible(False)


def legend_name(name: str, length: int = 34) -> str:
    """Return a name of at most ``length`` characters as a legend shows it literally."""
    # A dollar sign would start math mode. A leading underscore would hide the legend entry.
    shown = name if len(name) <= length else name[: length - 1] + '…'
    shown = shown.replace('$', r'\$')
    return f' {shown}' if shown.startswith('_') else shown


def shared_legend(
    figure: Figure, axes: Sequence[Axes] | np.ndarray, columns: int = 5, fontsize: float = 10
) -> None:
    """Draw one common legend below all axes; each label occurs once."""
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    options = {'ncols': columns, 'frameon': False, 'fontsize': fontsize}
    if matplotlib.__version_info__ >= (3, 7):
        figure.legend(handles.values(), handles.keys(), loc='outside lower center', **options)
        return
    # matplotlib 3.6 of Ubuntu 24.04 does not support "outside": make space for the legend.
    figure.legend(handles.values(), handles.keys(), loc='lower center', **options)
    rows = math.ceil(len(handles) / columns)
    room = (1.5 * rows + 1) * fontsize / 72 / figure.get_figheight()
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, room, 1, 1 - room))
