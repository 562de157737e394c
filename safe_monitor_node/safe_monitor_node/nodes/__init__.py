# SPDX-License-Identifier: Apache-2.0
"""Executables. Only this subpackage uses ROS.

monitor_parameters    the parameters of the monitor node
diagnosis             level and facts of a session for ``/diagnostics``; does not use ROS
monitor_messages      makes the messages of the monitor node
monitor_outputs       the publishers of the monitor node
topic_watch           other publishers of the topics of the monitor
monitor_inputs        the subscriptions of the monitor node, and the nodes around it
monitor_services      the services of the monitor node
schedule              periodic calls of one or many monitors
publication_order     events and steps in the order of their publication; does not use ROS
monitor_node          life cycle, steps, events and periodic calls of the monitor node
wait_sets             wait sets that are built once
monitor_loop          takes the messages of one or many monitors and scores their steps
monitor_process       runs one monitor node
monitor               executable of monitor_process
fleet_file            reads the list of the robots of a fleet
fleet_inputs          monitor_inputs with a limit of time for the events of one turn
fleet_robot           the monitor of one robot of a fleet
fleet_shares          the share of each robot in the time of a fleet; does not use ROS
fleet_loop            monitor_loop of a fleet, with a limit of time for each robot
fleet_parameters      the parameters of the fleet node
fleet_node            the monitors of many robots in one process
fleet                 executable of fleet_node
black_box_parameters  the parameters of the black box node
black_box_topics      the topics that the black box records
black_box_node        topics, service and diagnostics of the black box node
black_box             executable of black_box_node
robot_topics          subscriptions of the topics of monitors, for nodes that show robots
watch_node            all robots in a terminal
watch                 executable of watch_node
status                one line for each robot, and an exit status
monitor_calls         calls the services of running monitors
doctor                finds problems of monitors, topics and clocks
dashboard_node        all robots on a web page
dashboard             executable of dashboard_node
marker_messages       a robot as markers for RViz
markers_node          publishes these markers
markers               executable of markers_node
overlay_node          draws a robot into its camera image
overlay               executable of overlay_node

This subpackage imports all other subpackages.
"""
