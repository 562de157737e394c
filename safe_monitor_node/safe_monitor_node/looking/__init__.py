# SPDX-License-Identifier: Apache-2.0
"""What people look at: states in words, the robots that are known, and how they are shown. No ROS.

The modules; each may import only modules above it:

words           states of a robot in words and levels, and text that a terminal can print
board           what is known about each robot, with a bounded history
terminal        the board as a table for a terminal
status          robots as one line each, and as an exit status
examination     what is wrong around the monitors, in sentences
stream          the board as events for a browser
web_access      who may open the dashboard: host, origin, token
web_server      the dashboard as a small web server
pixels          camera images as arrays and back
camera_panel    the curve and the state, drawn into a camera image

``web`` holds the files of the web page. The report page of ``safe_training`` uses ``curve.js`` and
``curve.css`` too, so that a curve looks the same live and in a report.
"""
