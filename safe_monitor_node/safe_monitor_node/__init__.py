# SPDX-License-Identifier: Apache-2.0
"""Scores policy steps as they come, holds the scores against a calibrated band and raises failure alarms."""
