# SPDX-License-Identifier: Apache-2.0
"""The number of CPU threads of NumPy's and PyTorch's matrix products."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# A BLAS library exports one of these, depending on how it was built; NumPy itself has no function.
_PREFIXES = ('scipy_openblas', 'openblas')
_SUFFIXES = ('64_', '')
_OTHERS = ('MKL_Set_Num_Threads', 'bli_thread_set_num_threads')
_BLAS_FILE = re.compile(r'(blas|mkl_rt|blis)[^/]*\.so(\.[^/]*)?$')


#: Warning for a user if :func:`limit_threads` returns 0.
NOT_LIMITED = (
    'parameter threads: expected a known BLAS library of NumPy (OpenBLAS, MKL or BLIS), '
    'found none; the parameter threads does not limit NumPy: set the environment variable '
    'OMP_NUM_THREADS before the start'
)


def limit_threads(count: int) -> int:
    """Limit the number of threads for matrix products of NumPy, and of PyTorch if it is loaded.

    A library that cannot be limited keeps its number of threads. It causes no error.

    Parameters
    ----------
    count : int
        Number of threads, from 1.

    Returns
    -------
    int
        Number of BLAS libraries whose threads were limited; 0 if NumPy uses an unknown BLAS
        library, which is not limited (see :data:`NOT_LIMITED`).
    """
    # Another thread may import PyTorch at this time; then the function does not exist yet.
    limit_torch = getattr(sys.modules.get('torch'), 'set_num_threads', None)
    if limit_torch is not None:
        limit_torch(count)
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
    try:
        lines = os.fsdecode(Path('/proc/self/maps').read_bytes()).split('\n')
    except OSError:
        return
    # An upgrade can replace the file of a loaded library. The library keeps its old name.
    paths = {line.split(maxsplit=5)[-1].removesuffix(' (deleted)') for line in lines if line}
    for path in sorted(paths):
        if _BLAS_FILE.search(path):
            # Some mapped files with such a name cannot be opened as a library. If the name is not
            # valid UTF-8, ctypes cannot make the OSError and raises ValueError.
            try:
                library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
            except (OSError, ValueError):
                continue
            yield library
