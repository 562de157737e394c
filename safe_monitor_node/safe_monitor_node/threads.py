# SPDX-License-Identifier: Apache-2.0
"""The number of CPU threads of NumPy's and PyTorch's matrix products."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# A BLAS library exports one of these, depending on how it was built; NumPy itself has no function.
_PREFIXES = ('scipy_openblas', 'openblas')
_SUFFIXES = ('64_', '')
_OTHERS = ('MKL_Set_Num_Threads', 'bli_thread_set_num_threads')


def limit_threads(count: int) -> int:
    """Limit the number of threads for matrix products of NumPy, and of PyTorch if it is loaded.

    Returns
    -------
    int
        Number of BLAS libraries whose threads were limited; 0 if NumPy uses an unknown BLAS
        library, which is not limited (see ``OMP_NUM_THREADS``).
    """
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(count)
    limited = 0
    for library in _loaded_blas_libraries():
        names = [f'{p}_set_num_threads{s}' for p, s in itertools.product(_PREFIXES, _SUFFIXES)]
        for name in (*names, *_OTHERS):
            if hasattr(library, name):
                getattr(library, name)(ctypes.c_int(count))
                limited += 1
                break
    return limited


def _loaded_blas_libraries() -> Iterator[ctypes.CDLL]:
    """Yield the BLAS libraries that this process has loaded (Linux only)."""
    maps = Path('/proc/self/maps')
    lines = maps.read_text().splitlines() if maps.exists() else []
    for path in sorted({line.split(maxsplit=5)[-1] for line in lines}):
        if any(word in Path(path).name for word in ('blas', 'mkl_rt', 'blis')):
            yield ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
