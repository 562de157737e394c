# SPDX-License-Identifier: Apache-2.0
"""Limits the CPU threads of the arithmetic, so that a monitor leaves the other cores alone."""

from __future__ import annotations

import ctypes
import sys

import numpy as np

# NumPy's own wheels rename the symbols of OpenBLAS; distributions do not.
_OPENBLAS_SETTERS = (
    'scipy_openblas_set_num_threads64_',
    'scipy_openblas_set_num_threads',
    'openblas_set_num_threads64_',
    'openblas_set_num_threads',
)


def limit_threads(threads: int) -> None:
    """Limit the threads of NumPy's OpenBLAS and of PyTorch.

    PyTorch is limited only if the detector has loaded it. Another BLAS than OpenBLAS keeps its own
    limit, which an environment variable such as ``MKL_NUM_THREADS`` sets before the start.
    """
    limit_openblas(threads)
    if (torch := sys.modules.get('torch')) is not None:
        torch.set_num_threads(threads)


def limit_openblas(threads: int) -> bool:
    """Limit the threads of the OpenBLAS that NumPy has loaded; False if it has loaded none."""
    # The environment variable OPENBLAS_NUM_THREADS has no effect once NumPy is loaded. A symbol is
    # looked up in a library and in everything that the library was linked with.
    umath = getattr(np.linalg, '_umath_linalg', None)
    if umath is None:
        return False
    library = ctypes.CDLL(umath.__file__)
    for name in _OPENBLAS_SETTERS:
        if (set_threads := getattr(library, name, None)) is not None:
            set_threads(threads)
            return True
    return False
