# SPDX-License-Identifier: Apache-2.0
"""The nodes of this package and how a node's process ends. Needs ROS 2.

interrupt          ends a node's process cleanly on an interrupt
lifecycle          a lifecycle node with one set-up and one teardown
replay             plays a rollout set as if its policy were running
"""
