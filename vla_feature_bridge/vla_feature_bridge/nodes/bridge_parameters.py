# SPDX-License-Identifier: Apache-2.0
"""The parameters of the bridge node: name, default, description and range."""

from __future__ import annotations

from typing import Any

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.parameters import Parameter

EPISODE_FROM = (
    'sender',
    'event',
    'service',
    'topic',
    'action_status',
    'instruction',
    'gap',
)
"""Values of the parameter ``episode_from``."""

_SENDERS = (
    Parameter(
        'listen',
        [''],
        'Addresses at which sources connect: unix:/PATH or tcp://HOST:PORT; empty listens at the '
        'default address of a StepSender; with none, the bridge does not listen.',
    ),
    Parameter('max_sources', 16, 'Largest number of sources with different names.', 1, 1000),
    Parameter(
        'wait_for_subscribers',
        5.0,
        'Longest time for which the first steps of a new source wait in its sender until the '
        'subscribers of vla/policy_step are found and connected [s]. A bridge that has just '
        'started needs 3.5 s to find all.',
        0.0,
        3600.0,
    ),
    Parameter(
        'end_lost_after',
        0.0,
        'Time after which the bridge ends the episode of a source that lost its connection, with '
        'unknown outcome [s]; 0 leaves the episode open, so that the monitor reports STALE.',
        0.0,
        86400.0,
    ),
)

_TOPICS = (
    Parameter('features_topic', '', 'Topic of the features; empty: no topic.'),
    Parameter(
        'features_type', '', 'Message type of features_topic; empty: the type of its publisher.'
    ),
    Parameter('actions_topic', '', 'Topic of the actions or action chunks; empty: no topic.'),
    Parameter(
        'actions_type', '', 'Message type of actions_topic; empty: the type of its publisher.'
    ),
    Parameter(
        'observation_topic',
        '',
        'Topic of an observation, such as a camera image; a joined step gets its stamp; empty: no '
        'topic.',
    ),
    Parameter(
        'observation_type',
        '',
        'Message type of observation_topic; empty: the type of its publisher.',
    ),
    Parameter(
        'instruction_topic',
        '',
        'Topic of the language instruction (std_msgs/String), for steps that contain no '
        'instruction; empty: no topic.',
    ),
    Parameter('topics_source', '', 'Name of the source that joined topics are published as.'),
    Parameter('feature_name', '', 'Name and pooling of the features on features_topic.'),
    Parameter('policy', '', 'Name of the policy behind the topics.'),
    Parameter(
        'action_space', '', 'Space of the actions on actions_topic: normalized, robot or another.'
    ),
    Parameter(
        'exec_horizon',
        1,
        'Number of actions of a chunk on actions_topic that are executed before the next chunk.',
        1,
        2**31 - 1,
    ),
    Parameter(
        'join',
        'exact',
        'Messages of topics belong together if their stamps are equal (exact), or differ by less '
        'than join_slop (approximate).',
        choices=('exact', 'approximate'),
    ),
    Parameter(
        'join_slop', 0.05, 'Largest difference of stamps if join is approximate [s].', 1e-6, 60.0
    ),
    Parameter(
        'join_queue_size', 20, 'Number of messages of each topic that wait for partners.', 1, 10000
    ),
    Parameter(
        'allow_headerless',
        True,
        'Join messages without a stamp by the time at which they are received.',
    ),
    Parameter(
        'unjoined_steps',
        'missing',
        'A message of the leading topic without partners counts as a missing step of the episode '
        '(missing), or is only counted in /diagnostics (ignored).',
        choices=('missing', 'ignored'),
    ),
)

_ACTIONS = (
    Parameter(
        'joint_names',
        [''],
        'Names of the action dimensions: the order in which joints are read from actions_topic, '
        'and the names in vla/action_chunk; empty: the order of the first message, and action_0, '
        'action_1 and so on.',
    ),
    Parameter(
        'action_period',
        0.1,
        'Time between two actions of a chunk in vla/action_chunk [s].',
        1e-4,
        60.0,
    ),
)

_EPISODES = (
    Parameter(
        'episode_from',
        'sender',
        'What begins and ends an episode.',
        choices=EPISODE_FROM,
    ),
    Parameter(
        'episode_topic',
        '',
        'Topic of episodes if episode_from is event (safe_msgs/EpisodeEvent; empty: vla/episode) '
        'or topic.',
    ),
    Parameter(
        'episode_type', '', 'Message type of episode_topic; empty: the type of its publisher.'
    ),
    Parameter(
        'episode_field',
        'data',
        'Field of the messages on episode_topic that contains the value; for nested fields, write '
        'dots between the names.',
    ),
    Parameter(
        'episode_start_values',
        [''],
        'Values that begin an episode if episode_from is topic. If empty, every new value begins '
        'an episode, and false or an empty text ends it.',
    ),
    Parameter('episode_success_values', [''], 'Values that end an episode with success.'),
    Parameter('episode_failure_values', [''], 'Values that end an episode with failure.'),
    Parameter(
        'episode_end_values',
        [''],
        'Values that end an episode with unknown outcome. If no parameter has a value that ends an '
        'episode, every value that does not begin an episode ends it.',
    ),
    Parameter(
        'episode_action',
        'run_policy',
        'Name of the action if episode_from is action_status: an episode is the execution of a '
        'goal.',
    ),
    Parameter(
        'action_gives_outcome',
        False,
        'SUCCEEDED and ABORTED of episode_action are the outcome of the episode.',
    ),
    Parameter(
        'episode_gap',
        5.0,
        'Time without a step after which an episode ends if episode_from is gap [s].',
        0.01,
        86400.0,
    ),
    Parameter('task', '', 'Name of the task of the episodes that the bridge begins.'),
)

_DIAGNOSTICS = (
    Parameter(
        'stale_after',
        2.0,
        'Time without a step, while an episode runs, after which a source is STALE in '
        '/diagnostics [s].',
        0.01,
        3600.0,
    ),
    Parameter(
        'max_step_age',
        5.0,
        'Time from the stamp of a step to its arrival above which /diagnostics warns [s]; 0 '
        'disables this warning.',
        0.0,
        86400.0,
    ),
    Parameter('diagnostics_period', 1.0, 'Period of /diagnostics [s].', 0.05, 60.0),
    Parameter(
        'autostart', True, 'Configure and activate at start-up, without a lifecycle manager.'
    ),
)

PARAMETERS = (*_SENDERS, *_TOPICS, *_ACTIONS, *_EPISODES, *_DIAGNOSTICS)


class BridgeSettingsError(SafeError):
    """Parameters of the bridge contradict each other."""


def check_settings(p: Any) -> None:
    """Check that the parameters fit together.

    Parameters
    ----------
    p
        The parameters' values as attributes, as ``declare_parameters`` returns them.

    Raises
    ------
    BridgeSettingsError
        The parameters do not fit together.
    """
    joins = bool(p.features_topic or p.actions_topic)
    if joins and p.episode_from == 'sender':
        raise BridgeSettingsError(
            where='parameter episode_from',
            expected='a source of episodes for joined topics: '
            + ', '.join(name for name in EPISODE_FROM if name != 'sender'),
            found="'sender'",
            advice='set for example episode_from:=gap; with senders too, run a second bridge',
        )
    if p.features_topic and not p.feature_name:
        raise BridgeSettingsError(
            where='parameter feature_name',
            expected=f'the name of the features on {p.features_topic}',
            found='an empty text',
            advice="take the name that `safe_training info SET` prints, such as 'hidden_states'",
        )
    if p.episode_from == 'topic' and not p.episode_topic:
        raise BridgeSettingsError(
            where='parameter episode_topic',
            expected='a topic, because episode_from is topic',
            found='an empty name',
        )
    if joins and p.episode_from == 'instruction' and not p.instruction_topic:
        raise BridgeSettingsError(
            where='parameter instruction_topic',
            expected='a topic, because episode_from is instruction',
            found='an empty name',
        )
