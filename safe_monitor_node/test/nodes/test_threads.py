# SPDX-License-Identifier: Apache-2.0
"""The limit of threads holds for the arithmetic that a process has loaded."""

import json
import subprocess
import sys

CODE = """
import ctypes, json, sys
import numpy as np
from safe_monitor_node.nodes.threads import limit_openblas, limit_threads

library = ctypes.CDLL(np.linalg._umath_linalg.__file__)
getters = [
    getattr(library, name, None)
    for name in (
        'scipy_openblas_get_num_threads64_',
        'scipy_openblas_get_num_threads',
        'openblas_get_num_threads64_',
        'openblas_get_num_threads',
    )
]
getter = next((found for found in getters if found is not None), None)
seen = []
for threads in (2, 1):
    limit_threads(threads)
    seen.append(threads if getter is None else getter())
loaded = 'torch' in sys.modules
import torch
limit_threads(3)
print(json.dumps([limit_openblas(1), getter is not None, seen, loaded, torch.get_num_threads()]))
"""


def test_numpy_and_torch_are_limited_and_torch_is_not_loaded_for_it():
    done = subprocess.run(
        [sys.executable, '-c', CODE], capture_output=True, text=True, check=True, timeout=120
    )
    limited, has_openblas, seen, loaded, torch_threads = json.loads(done.stdout)
    assert limited == has_openblas
    assert seen == [2, 1]
    assert not loaded
    assert torch_threads == 3
