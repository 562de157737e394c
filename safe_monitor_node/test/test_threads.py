# SPDX-License-Identifier: Apache-2.0
"""A monitor takes as many CPU cores as it is allowed, with NumPy and with PyTorch."""

import os
import subprocess
import sys

# Prints how many threads of the process computed: the kernel counts the ticks of each. A waiting
# thread spins for some ticks before it sleeps, so only a large share of the work counts.
BUSY = """
import os
import numpy as np
from safe_monitor_node.threads import limit_threads

def ticks():
    threads = os.listdir('/proc/self/task')
    return {t: int(open(f'/proc/self/task/{t}/stat').read().split()[13]) for t in threads}

limited = limit_threads(1)
before = ticks()
matrix = np.ones((3000, 3000), np.float32)
for _ in range(1500):
    matrix @ matrix[0]
spent = [now - before.get(thread, 0) for thread, now in ticks().items()]
print(limited, sum(work > max(spent) / 4 for work in spent))
"""

# Maps files that look like BLAS libraries: one that was replaced on disk after it was loaded, and
# data that is only mapped.
ODD_FILES = """
import ctypes, mmap, os, shutil, tempfile
import numpy as np
from safe_monitor_node.threads import limit_threads

before = limit_threads(1)
maps = [line.split()[-1] for line in open('/proc/self/maps')]
with tempfile.TemporaryDirectory() as folder:
    shutil.copy(next(path for path in maps if 'blas' in path), folder + '/libopenblas_copy.so')
    loaded = ctypes.CDLL(folder + '/libopenblas_copy.so')
    os.unlink(folder + '/libopenblas_copy.so')
    mapped = []
    for name in (b'sandblasting.safetensors', b'libblas.so', b'libopenblas\\xff.so.0'):
        path = os.path.join(folder.encode(), name)
        with open(path, 'w+b') as file:
            file.write(bytes(8192))
            file.flush()
            mapped.append(mmap.mmap(file.fileno(), 0))
    print(before, limit_threads(1))
"""

LIMIT = 'import sys; from safe_monitor_node.threads import limit_threads; limit_threads(1)\n'


def printed(code):
    environment = {k: v for k, v in os.environ.items() if not k.endswith('_NUM_THREADS')}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_limit_of_one_thread_keeps_products_on_one_core():
    limited, busy = printed(BUSY)
    assert int(limited) >= 1
    assert int(busy) == 1


def test_odd_files_with_the_name_of_a_library_raise_no_error():
    before, limited = printed(ODD_FILES)
    assert int(limited) >= int(before) >= 1


def test_pytorch_is_limited_if_it_is_loaded_and_not_loaded_otherwise():
    assert printed(LIMIT + "print('torch' in sys.modules)") == ['False']
    threads = "print(sys.modules['torch'].get_num_threads())"
    assert printed('import torch\n' + LIMIT + threads) == ['1']
