# SPDX-License-Identifier: Apache-2.0
"""Records the last seconds before and after an alarm in a file. Does not use ROS.

The modules; each may import only modules above it:

place      reads episode id and index of a serialized step
window     the messages of the last seconds, bounded in memory
folder     the folder of recordings: names, limits, unfinished files
recorder   keeps messages and writes a recording for each alarm, in its own thread
"""
