# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: the benchmarks that ``./dev bench`` runs."""

import sys

from bench.main import main

sys.exit(main())
