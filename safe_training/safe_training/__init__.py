# SPDX-License-Identifier: Apache-2.0
"""Builds failure detectors offline: reads dumps and bags, fits, calibrates, evaluates."""
