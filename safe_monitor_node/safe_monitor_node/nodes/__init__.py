# SPDX-License-Identifier: Apache-2.0
"""Executables. Only this subpackage uses ROS.

monitor_parameters    the parameters of the monitor node
monitor               topics, services and timers of the monitor node
monitor_messages      the messages of the monitor node, made from a session
diagnosis             level and facts of a session for ``/diagnostics``; no ROS in it

This subpackage imports all other subpackages.
"""
