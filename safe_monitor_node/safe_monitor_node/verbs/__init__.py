# SPDX-License-Identifier: Apache-2.0
"""The commands of an operator: ``ros2 safe VERB``, or ``python -m safe_monitor_node VERB``.

passing       a verb that passes all its arguments to another command line
live          the verbs for running monitors
command       finds all verbs, with and without ros2cli

A verb is a class with a docstring, ``add_arguments(parser, cli_name)`` and ``main(args=...)``, as
ros2cli requires, but it does not import ros2cli. Other packages add verbs by the group of entry
points ``ros2safe.verb``; ``safe_training`` adds the verbs for recordings. ROS 2, NumPy and PyTorch
are imported only when a verb runs, so that the list of verbs is fast.
"""
