# SPDX-License-Identifier: Apache-2.0
"""The last seconds before and after an alarm, in a file. No ROS in it.

The modules; each may import only modules above it:

place      which step of which episode a serialized step is
window     the messages of the last seconds, bounded in memory
folder     the folder of recordings: names, bounds, what a killed process left behind
recorder   keeps messages and writes a recording for each alarm, in a thread of its own
"""
