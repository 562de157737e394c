# SPDX-License-Identifier: Apache-2.0
"""Views of the robots for people: terminal, web page, camera image. No ROS.

The modules; each may import only modules above it:

words           states of a robot in words and levels, and text that a terminal can print
board           the last data of each robot, with a bounded history
terminal        the board as a table for a terminal
status          robots as one line each, and as an exit status
examination     finds problems of monitors, topics and nodes
stream          the board as events for a browser
web_access      who may open the dashboard: host, origin, token
web_server      the dashboard as a small web server
pixels          camera images as arrays and back
camera_panel    the curve and the state, drawn into a camera image

The folder ``web`` contains the files of the web page. The report page of ``safe_training`` also
uses ``curve.js`` and ``curve.css``, so that curves look the same in both.
"""
