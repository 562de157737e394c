# SPDX-License-Identifier: Apache-2.0
"""Brings the whole of SAFE for ROS 2 up: launch and parameter files, the demo and the benchmark."""
