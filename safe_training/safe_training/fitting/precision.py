# SPDX-License-Identifier: Apache-2.0
"""Number formats for matrix products when models are trained together."""

from typing import Literal

Precision = Literal['float32', 'bfloat16']
