# SPDX-License-Identifier: Apache-2.0
"""What every node needs. Knows ROS.

messages           messages to plain data and back
qos                quality of service of every topic
parameters         parameters, declared once
"""
