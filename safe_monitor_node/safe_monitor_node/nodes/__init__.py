# SPDX-License-Identifier: Apache-2.0
"""Executables. Only this subpackage uses ROS.

monitor_parameters    the parameters of the monitor node
diagnosis             level and facts of a session for ``/diagnostics``; no ROS in it
monitor_messages      the messages of the monitor node, made from a session
monitor_outputs       what the monitor node publishes
topic_watch           who else publishes the topics of the monitor
monitor_inputs        the subscriptions of the monitor node, and the nodes around it
monitor_services      the services of the monitor node
fleet_schedule        periodic calls of one or many monitors
publication_order     events and steps in the order of their publication; no ROS in it
monitor_node          life cycle, steps, events and periodic calls of the monitor node
wait_sets             wait sets that last
monitor_loop          takes the messages of one or many monitors and scores their steps
monitor_process       runs one monitor node
monitor               executable of monitor_process
fleet_file            reads the list of the robots of a fleet
fleet_inputs          monitor_inputs with a limit of time for the events of one turn
fleet_robot           the monitor of one robot of a fleet
fleet_shares          who has used more than its share of the time of a fleet; no ROS in it
fleet_loop            monitor_loop of a fleet, in which nobody keeps the others waiting
fleet_parameters      the parameters of the fleet node
fleet_node            the monitors of many robots in one process
fleet                 executable of fleet_node
black_box_parameters  the parameters of the black box node
black_box_topics      the topics that the black box records
black_box_node        topics, service and diagnostics of the black box node
black_box             executable of black_box_node
robot_topics          subscriptions of what monitors publish, for nodes that show robots
watch_node            all robots in a terminal
watch                 executable of watch_node
status                one line for each robot, and an exit status
monitor_calls         calls the services of running monitors
doctor                what is wrong around the monitors, in sentences
dashboard_node        all robots on a web page
dashboard             executable of dashboard_node
marker_messages       a robot as markers for RViz
markers_node          publishes these markers
markers               executable of markers_node
overlay_node          draws a robot into its camera image
overlay               executable of overlay_node

This subpackage imports all other subpackages.
"""
