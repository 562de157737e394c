# SPDX-License-Identifier: Apache-2.0
"""Number formats of the matrix products of models that are trained together."""

from typing import Literal

Precision = Literal['float32', 'bfloat16']
