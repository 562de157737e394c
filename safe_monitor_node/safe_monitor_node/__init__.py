# SPDX-License-Identifier: Apache-2.0
"""Scores policy steps as they come, holds them against a calibrated band and raises alarms."""
