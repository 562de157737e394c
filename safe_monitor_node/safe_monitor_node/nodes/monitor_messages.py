# SPDX-License-Identifier: Apache-2.0
"""Makes the messages of the monitor node from a session, and reads labels from messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from safe_monitor_node.monitor.alarm import AlarmState, Verdict
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.own_labels import EpisodeLabel
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.step_order import shown
from safe_monitor_node.monitor.steps import StepResult
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.nodes.diagnosis import Level
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore, PolicyStep
from vla_feature_bridge.ros.messages import time_from_message

OUTCOMES = {
    EpisodeEvent.OUTCOME_UNKNOWN: None,
    EpisodeEvent.OUTCOME_SUCCESS: True,
    EpisodeEvent.OUTCOME_FAILURE: False,
}
"""Whether an episode succeeded, by the outcome of a message; None is unknown."""

_LONGEST_TEXT = 1000
_OUTCOME_NAMES = {None: 'unknown', True: 'a success', False: 'a failure'}
_ALLOWED_OUTCOMES = (
    f'{EpisodeEvent.OUTCOME_UNKNOWN} (unknown), {EpisodeEvent.OUTCOME_SUCCESS} (success) or '
    f'{EpisodeEvent.OUTCOME_FAILURE} (failure)'
)


def score_message(detector: str, step: PolicyStep, result: StepResult) -> FailureScore:
    """Return the score message of a step. The caller must set the latency."""
    message = FailureScore(
        episode_id=step.episode_id,
        step=step.step,
        detector=detector,
        score=result.score,
        threshold=result.threshold,
        margin=result.score - result.threshold,
        probability=result.probability,
        alarm=result.verdict.state == AlarmState.ALARM,
        state=int(result.verdict.state),
    )
    message.header = step.header
    return message


def detector_messages(session: MonitorSession, step: PolicyStep) -> dict[str, FailureScore]:
    """Return the score messages of several detectors by name; empty for a single detector.

    Their state is the state of the detector, and not the combined state. The caller must set the
    latency.
    """
    ensemble = session.ensemble
    if not ensemble.several:
        return {}
    messages = {}
    for slot, result in zip(ensemble.slots, ensemble.results, strict=True):
        own = replace(result, verdict=slot.shown(result.verdict))
        own = session.freshness.applied_to_result(own)
        messages[slot.name] = score_message(slot.name, step, own)
    return messages


def alarm_message(session: MonitorSession, verdict: Verdict, advice: int) -> FailureAlarm:
    """Return the alarm message. The caller must set the header."""
    return FailureAlarm(
        episode_id=session.monitor.episode_id,
        step=verdict.step,
        detector=session.ensemble.detector,
        state=int(verdict.state),
        reason=_shortened(verdict.reason),
        score=verdict.score,
        threshold=verdict.threshold,
        advice=advice,
    )


def inactive_message(session: MonitorSession, advice: int) -> FailureAlarm:
    """Return the alarm message of a monitor that becomes inactive. The caller sets the header.

    Parameters
    ----------
    session : MonitorSession
    advice : int
        The last advice, which does not change.
    """
    verdict = session.verdict
    return FailureAlarm(
        episode_id=session.monitor.episode_id,
        step=verdict.step,
        detector=session.ensemble.detector,
        state=int(AlarmState.UNKNOWN),
        reason=f'the monitor is not active; its last state was {verdict.state.name}: '
        f'{_shortened(verdict.reason)}',
        score=math.nan,
        threshold=math.nan,
        advice=advice,
    )


def status_name(node: str) -> str:
    """Return the name of the status of a monitor on ``/diagnostics``."""
    return f'{node.lstrip("/")}: failure monitor'


def diagnostic_status(
    node: str, level: Level, message: str, facts: Mapping[str, object]
) -> DiagnosticStatus:
    """Return the diagnosis of a monitor node.

    Parameters
    ----------
    node : str
        Full name of the node.
    level, message
        As :func:`~safe_monitor_node.nodes.diagnosis.diagnose` returns them.
    facts : mapping of str to object
        Long texts are shortened, because a task can be as long as a message.
    """
    return DiagnosticStatus(
        level=bytes([level]),
        name=status_name(node),
        message=_shortened(message),
        values=[KeyValue(key=key, value=_shortened(str(value))) for key, value in facts.items()],
    )


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    return f'{text[:_LONGEST_TEXT]}... ({len(text)} characters)'


def label_message(episode_id: str, outcome: int, node: str) -> EpisodeEvent:
    """Return the message that the label service of the node publishes.

    The caller must set the stamp.

    Raises
    ------
    MonitorError
        The number of the outcome is not allowed, or no episode has run and no id is given.
    """
    if outcome not in OUTCOMES:
        raise MonitorError(
            where='outcome',
            expected=_ALLOWED_OUTCOMES,
            found=str(outcome),
            advice='no episode was labelled',
        )
    if not episode_id:
        raise MonitorError(
            where='episode_id',
            expected='the id of an episode, because no episode has run since the node started',
            found='an empty text',
            advice='no episode was labelled: give the episode_id',
        )
    return EpisodeEvent(
        episode_id=episode_id,
        kind=EpisodeEvent.KIND_LABEL,
        outcome=outcome,
        reason=f'labelled through {node}/label_episode',
    )


def label_of(event: EpisodeEvent) -> EpisodeLabel:
    """Return the label in an event.

    Raises
    ------
    MonitorError
        The number of the outcome is not allowed.
    """
    if event.outcome not in OUTCOMES:
        raise MonitorError(
            where=f'vla/episode: episode {shown(event.episode_id)}',
            expected=f'as outcome {_ALLOWED_OUTCOMES}',
            found=str(event.outcome),
            advice='the outcome is ignored',
        )
    stamp = time_from_message(event.header.stamp)
    return EpisodeLabel(event.episode_id, OUTCOMES[event.outcome], stamp, event.reason)


def label_sentence(
    label: EpisodeLabel,
    effect: LabelEffect | None,
    effects: Mapping[str, LabelEffect] | None = None,
    news: Sequence[str] = (),
) -> str:
    """Return a sentence about the effect of a label.

    The effect None means that the label was only published. If the effects on several detectors
    differ, the sentence has the name of each. ``news`` is what happened to good runs.
    """
    done = 'published, without an effect in this monitor' if effect is None else effect.value
    if effects and len(set(effects.values())) > 1:
        done = '; '.join(f'{name}: {one.value}' for name, one in effects.items())
    elif news and effect is LabelEffect.OFF:
        done = ''
    done = '; '.join(filter(None, (done, *news)))
    return f'episode {shown(label.episode_id)}, outcome {_OUTCOME_NAMES[label.success]}: {done}'
