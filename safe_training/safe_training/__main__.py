# SPDX-License-Identifier: Apache-2.0
"""``python -m safe_training VERB``."""

import sys

from safe_training.cli.main import main

sys.exit(main())
