# SPDX-License-Identifier: Apache-2.0
"""The last data of each robot, with a bounded history, for all views of robots."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field, replace

from safe_monitor_node.looking.words import (
    GONE,
    ORDER,
    StateWord,
    advice_word,
    printable,
    state_word,
)
from safe_monitor_node.monitor.alarm import AlarmState

Point = tuple[int, float, float]
"""Step, score, threshold. NaN: no score, no band; infinite threshold: no alarm is possible."""

LONGEST_ID = 1000
"""Longest episode id [characters]. Of a longer id, one character more is kept."""

_INTERVALS = 20


@dataclass(frozen=True)
class ScoreSample:
    """The data of a ``FailureScore``.

    Attributes
    ----------
    episode_id : str
    step : int
    score, threshold, probability : float
    state : int
    detector : str
    """

    episode_id: str
    step: int
    score: float
    threshold: float
    probability: float
    state: int
    detector: str = ''


@dataclass(frozen=True)
class AlarmSample:
    """The data of a ``FailureAlarm``.

    Attributes
    ----------
    episode_id : str
    step : int
    state, advice : int
    reason : str
    """

    episode_id: str
    step: int
    state: int
    advice: int
    reason: str


@dataclass
class RobotView:
    """The data of one robot at one time.

    Attributes
    ----------
    name : str
        Namespace, such as ``/robot1``; ``/`` without one.
    alive : bool
        Whether a monitor of this robot is running.
    episode_id, previous_id : str
        The last two episodes that had a score.
    serial : int
        Number of episodes so far. A repeated episode with the same id counts again.
    detector, reason, advice : str
    state : StateWord
    step : int
        -1 before the first score.
    score, threshold, probability : float
    alarm_step : int or None
        Step of the running episode that raised the alarm.
    age : float
        Time since the last score arrived [s]; infinite before the first.
    rate : float
        Scores per second; NaN if it is not known.
    points : tuple of Point
        The last steps of the episode.
    total : int
        Number of points of the episode, including points that are no longer kept.
    """

    name: str
    alive: bool
    episode_id: str
    previous_id: str
    serial: int
    detector: str
    reason: str
    advice: str
    state: StateWord
    step: int
    score: float
    threshold: float
    probability: float
    alarm_step: int | None
    age: float
    rate: float
    points: tuple[Point, ...]
    total: int


@dataclass
class _Robot:
    points: deque[Point]
    last: ScoreSample | None = None
    alarm: AlarmSample | None = None
    alive: bool = True
    gone_at: float = math.inf
    previous_id: str = ''
    serial: int = 0
    total: int = 0
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=_INTERVALS))


class RobotBoard:
    """Stores the last data of all robots; all methods may be called from any thread.

    Parameters
    ----------
    history : int
        Number of steps that are kept for each robot.
    most_robots : int
        If there are more robots, robots without a monitor are removed first. If all have a monitor,
        new robots are refused.
    """

    def __init__(self, history: int = 600, most_robots: int = 200) -> None:
        self.history, self.most_robots = history, most_robots
        self._robots: dict[str, _Robot] = {}
        self._lock = threading.Lock()

    def add(self, name: str) -> bool:
        """Add a robot; returns False if there are too many robots."""
        with self._lock:
            if name in self._robots:
                return True
            if len(self._robots) >= self.most_robots:
                gone = [key for key, robot in self._robots.items() if not robot.alive]
                if not gone:
                    return False
                del self._robots[min(gone, key=lambda key: self._robots[key].gone_at)]
            self._robots[name] = _Robot(deque(maxlen=self.history))
            return True

    def names(self) -> list[str]:
        """Return the names of all robots, sorted."""
        with self._lock:
            return sorted(self._robots)

    def silent(self, name: str = '') -> bool:
        """Return whether a robot is known of which neither a state nor a score has arrived.

        Parameters
        ----------
        name : str
            The robot to look at; empty for all robots.
        """
        with self._lock:
            return any(
                robot.alarm is None and robot.last is None
                for key, robot in self._robots.items()
                if name in ('', key)
            )

    def take_score(self, name: str, sample: ScoreSample, now: float) -> None:
        """Store a score of a known robot; ``now`` is a steady time [s]."""
        sample = replace(sample, episode_id=_cut(sample.episode_id), detector=sample.detector[:100])
        with self._lock:
            robot = self._robots.get(name)
            if robot is None:
                return
            last = robot.last
            if last is None or last.episode_id != sample.episode_id or sample.step <= last.step:
                if last is not None and last.episode_id != sample.episode_id:
                    robot.previous_id = last.episode_id
                robot.points.clear()
                robot.arrivals.clear()
                robot.serial, robot.total = robot.serial + 1, 0
            robot.last = sample
            robot.points.append((sample.step, sample.score, sample.threshold))
            robot.total += 1
            robot.arrivals.append(now)

    def take_alarm(self, name: str, sample: AlarmSample) -> None:
        """Store a state of a known robot."""
        sample = replace(sample, episode_id=_cut(sample.episode_id), reason=_cut(sample.reason))
        with self._lock:
            if (robot := self._robots.get(name)) is not None:
                robot.alarm = sample

    def set_alive(self, name: str, alive: bool, now: float) -> None:
        """Set whether a monitor of a known robot is running."""
        with self._lock:
            robot = self._robots.get(name)
            if robot is not None and robot.alive != alive:
                robot.alive, robot.gone_at = alive, math.inf if alive else now

    def views(self, now: float) -> list[RobotView]:
        """Return all robots as they are now, sorted by name."""
        with self._lock:
            return [_view(name, self._robots[name], now) for name in sorted(self._robots)]

    def view(self, name: str, now: float) -> RobotView | None:
        """Return one robot; None if it is not known."""
        with self._lock:
            robot = self._robots.get(name)
            return None if robot is None else _view(name, robot, now)


def by_urgency(view: RobotView) -> tuple[int, str]:
    """Return the sorting key of robots: the most urgent state first, then by name."""
    return ORDER.index(view.state.severity), view.name


def _cut(text: str) -> str:
    return text[: LONGEST_ID + 1]


def _view(name: str, robot: _Robot, now: float) -> RobotView:
    last, alarm = robot.last, robot.alarm
    state = alarm.state if alarm else last.state if last else AlarmState.UNKNOWN
    reason = printable(alarm.reason) if alarm else 'neither a state nor a score has arrived yet'
    if alarm is None and last is not None:
        reason = 'no state has arrived yet'
    advice = advice_word(alarm.advice) if alarm else ''
    word = state_word(state)
    if not robot.alive:
        reason = f'no monitor is running; the last state was {word.word}: {reason}'
        word = GONE
    running = last.episode_id if last else ''
    raised = alarm is not None and alarm.state == AlarmState.ALARM and alarm.episode_id == running
    return RobotView(
        name=name,
        alive=robot.alive,
        episode_id=running,
        previous_id=robot.previous_id,
        serial=robot.serial,
        detector=printable(last.detector, 40) if last else '',
        reason=reason,
        advice=advice,
        state=word,
        step=last.step if last else -1,
        score=last.score if last else math.nan,
        threshold=last.threshold if last else math.nan,
        probability=last.probability if last else math.nan,
        alarm_step=alarm.step if alarm is not None and raised else None,
        age=now - robot.arrivals[-1] if robot.arrivals else math.inf,
        rate=_rate(robot.arrivals, now),
        points=tuple(robot.points),
        total=robot.total,
    )


def _rate(arrivals: deque[float], now: float) -> float:
    """Return the scores per second; NaN if fewer than two came, or if no more scores come."""
    if len(arrivals) < 2 or arrivals[-1] <= arrivals[0]:
        return math.nan
    period = (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)
    return 1.0 / period if now - arrivals[-1] < 1.0 + 3.0 * period else math.nan
