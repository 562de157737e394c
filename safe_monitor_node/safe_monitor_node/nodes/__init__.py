# SPDX-License-Identifier: Apache-2.0
"""The nodes of this package: thin shells that know ROS."""
