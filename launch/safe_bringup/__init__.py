# SPDX-License-Identifier: Apache-2.0
"""Launch files, parameter files and the demo of SAFE for ROS 2.

demo               from recorded rollouts to a live alarm
live               runs replay and monitor as processes, and records their messages
launch_arguments   arguments of the launch files
parameter_docs     makes docs/reference/parameters.md
preset_docs        makes docs/reference/presets.md

This package imports all other packages. No other package imports this package.
"""
