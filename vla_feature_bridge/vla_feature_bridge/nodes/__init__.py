# SPDX-License-Identifier: Apache-2.0
"""The nodes of this package and how a node's process ends. Needs ROS 2.

The modules; each may import only modules above it:

startup            starts the process of a node: signals end it from the beginning
interrupt          ends a node's process cleanly on a signal
lifecycle          a lifecycle node with one set-up and one teardown
levels             the levels of a diagnosis; without ROS
handover           moves calls of other threads to the thread of the executor
replay_node        plays a rollout set as if its policy were running
bridge_parameters  the parameters of the bridge
bridge_boundaries  rules that find the start and the end of an episode; without ROS
bridge_channel     forwards the steps and episodes of one source; without ROS
bridge_episodes    three ways to number steps and begin episodes; without ROS
bridge_diagnosis   severity and facts of a source; without ROS
bridge_outputs     the topics of one source
bridge_signs       reads the begin and end of episodes from topics
bridge_sources     all sources by their names
bridge_topics      steps joined from topics
bridge_session     all objects of the bridge between configure and cleanup
bridge_node        the bridge node: parameters, services, timers, diagnostics
bridge, replay     executables of bridge_node and replay_node
"""
