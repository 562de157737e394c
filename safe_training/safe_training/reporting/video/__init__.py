# SPDX-License-Identifier: Apache-2.0
"""Scores drawn onto videos.

frames            which frame shows which step
overlay           draws and writes
"""
