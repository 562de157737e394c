# SPDX-License-Identifier: Apache-2.0
"""Nodes of launch files: their parameters, their life cycle, and respawn."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from launch.actions import EmitEvent, OpaqueFunction, RegisterEventHandler, TimerAction
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescriptionEntity
from safe_bringup.launch_arguments import (
    LaunchArgumentError,
    argument,
    given_parameters,
    log_arguments,
    parameter_file,
    respawn_settings,
)

Entities = list[LaunchDescriptionEntity]

ASK_AGAIN_AFTER = 5.0
"""Time after which a respawned node that is not configured is asked again [s].

The services of a killed process stay known for up to 20 s, and a request to them is lost.
"""

TRIES = 6
"""How many times a respawned node is asked to configure itself."""


def plain_node(
    context: LaunchContext,
    executable: str,
    file: str,
    given: Mapping[str, ParameterValue],
    package: str = 'safe_monitor_node',
    *,
    respawned: bool = True,
) -> Node:
    """Return a node without life cycle.

    Parameters
    ----------
    executable : str
        Also the name of the node.
    file : str
        Name of the argument that names the parameter file; the file is left out if it is empty.
    given : mapping
        Parameters that override the file.
    package : str
    respawned : bool
        Whether the launch file has the arguments of :func:`respawn_arguments`.
    """
    settings = respawn_settings(context) if respawned else {}
    return Node(**_described(context, package, executable, file, given), **settings)


def managed_node(
    context: LaunchContext,
    executable: str,
    file: str,
    given: Mapping[str, ParameterValue],
    package: str = 'safe_monitor_node',
) -> Entities:
    """Return a lifecycle node, and the actions that configure and activate it, by ``managed_by``.

    The parameters are those of :func:`plain_node`.

    Raises
    ------
    LaunchArgumentError
        ``autostart`` contradicts ``managed_by``.
    """
    by = argument(context, 'managed_by')
    own = given_parameters(context, {'autostart': bool, 'use_sim_time': bool})
    if by != 'node':
        if argument(context, 'autostart') == 'true':
            raise LaunchArgumentError(
                where='argument autostart',
                expected=f'no autostart:=true together with managed_by:={by}',
                found='both',
                advice='remove one of the two arguments',
            )
        own['autostart'] = ParameterValue(False, value_type=bool)
    described = _described(context, package, executable, file, {**given, **own})
    if by != 'launch':
        return [Node(**described, **respawn_settings(context))]
    node = LifecycleNode(**described, **respawn_settings(context))
    return [*managing(node), node]


def node_managed_here(
    context: LaunchContext,
    executable: str,
    file: str,
    given: Mapping[str, ParameterValue],
    package: str = 'safe_monitor_node',
) -> LifecycleNode:
    """Return a lifecycle node that is never started again; :func:`managing` activates it.

    The parameters are those of :func:`plain_node`.
    """
    waits = {'autostart': ParameterValue(False, value_type=bool)}
    return LifecycleNode(**_described(context, package, executable, file, {**given, **waits}))


def managing(node: LifecycleNode) -> Entities:
    """Return the actions that configure and activate a node whenever its process has started."""
    return _Manager(node).handlers()


def _described(
    context: LaunchContext,
    package: str,
    executable: str,
    file: str,
    given: Mapping[str, ParameterValue],
) -> dict[str, Any]:
    files = [parameter_file(context, file)] if argument(context, file) else []
    return {
        'package': package,
        'executable': executable,
        'name': executable,
        'namespace': argument(context, 'namespace'),
        'parameters': [*files, *([dict(given)] if given else [])],
        'ros_arguments': log_arguments(context, executable),
        'output': 'screen',
    }


class _Manager:
    """Configures and activates a node whenever its process has started."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._starts = 0
        self._configured = False

    def handlers(self) -> Entities:
        """Return the handlers of the events of the node."""
        return [
            RegisterEventHandler(OnProcessStart(target_action=self._node, on_start=self._on_start)),
            RegisterEventHandler(
                OnStateTransition(
                    target_lifecycle_node=self._node,
                    goal_state='inactive',
                    start_state='configuring',
                    entities=[OpaqueFunction(function=self._on_configured)],
                )
            ),
        ]

    def _ask(self, transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(self._node), transition_id=transition
            )
        )

    def _on_start(self, event: object, context: LaunchContext) -> Entities:
        self._starts, self._configured = self._starts + 1, False
        return self._configure(context, self._starts, TRIES if self._starts > 1 else 1)

    def _configure(self, context: LaunchContext, start: int, tries: int) -> Entities:
        """Ask the node, and again if it was not configured meanwhile."""
        if self._configured or start != self._starts or context.is_shutdown:
            return []
        asked: Entities = [self._ask(Transition.TRANSITION_CONFIGURE)]
        if tries > 1:
            again = partial(self._configure, start=start, tries=tries - 1)
            asked.append(
                TimerAction(period=ASK_AGAIN_AFTER, actions=[OpaqueFunction(function=again)])
            )
        return asked

    def _on_configured(self, context: LaunchContext) -> Entities:
        self._configured = True
        return [self._ask(Transition.TRANSITION_ACTIVATE)]
