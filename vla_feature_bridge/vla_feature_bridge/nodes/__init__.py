# SPDX-License-Identifier: Apache-2.0
"""The nodes of this package and how a node's process ends. Needs ROS 2.

startup            starts the process of a node: signals end it from the beginning
interrupt          ends a node's process cleanly on a signal
lifecycle          a lifecycle node with one set-up and one teardown
replay             executable of replay_node
replay_node        plays a rollout set as if its policy were running
"""
