# SPDX-License-Identifier: Apache-2.0
"""Checks a preset on a policy: compares one inference with what the preset expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vla_feature_bridge.taps.inference import Inference
from vla_feature_bridge.taps.paths import find_module, unwrapped
from vla_feature_bridge.taps.preset import AFTER_CALLS, Preset
from vla_feature_bridge.taps.tap import FeatureTap


@dataclass(frozen=True)
class CheckRow:
    """One line of a check.

    Attributes
    ----------
    what, expected, found : str
    right : bool or None
        None if the line is only information.
    """

    what: str
    expected: str
    found: str
    right: bool | None = None


@dataclass(frozen=True)
class CheckReport:
    """The result of a check. ``str(report)`` is a table.

    Attributes
    ----------
    preset : str
        Name of the preset.
    rows : tuple of CheckRow
    problems : tuple of str
        Problems that the tap reported.
    """

    preset: str
    rows: tuple[CheckRow, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if the preset fits the policy."""
        return not self.problems and all(row.right is not False for row in self.rows)

    def __str__(self) -> str:
        marks = {True: 'ok', False: 'WRONG', None: ''}
        cells = [('', 'expected', 'found', '')]
        cells += [(row.what, row.expected, row.found, marks[row.right]) for row in self.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(3)]
        lines = [
            '  '.join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in cells
        ]
        lines += [f'problem: {problem}' for problem in self.problems]
        verdict = 'fits this policy' if self.passed else 'does NOT fit this policy'
        lines.append(f'The preset {self.preset} {verdict}.')
        return '\n'.join(line.rstrip() for line in lines)


def check(
    policy: Any, preset: str | Path | Preset, run: Callable[[Any], Any], /, **changes: Any
) -> CheckReport:
    """Run one inference of a policy with a tap, and compare the result with the preset.

    The tap is removed again. Exceptions of ``run`` pass through.

    Parameters
    ----------
    policy, preset, **changes
        As for :class:`FeatureTap`.
    run : callable
        Takes the policy and makes one inference with it.

    Returns
    -------
    CheckReport

    Raises
    ------
    TapError
        The tap cannot be attached: a submodule or method does not exist.
    """
    inferences: list[Inference] = []
    with FeatureTap(policy, preset, **changes) as tap:
        tap.on_inference(inferences.append)
        run(policy)
        exec_horizon = tap.exec_horizon
        unfinished = tap.unfinished
    preset = tap.preset
    rows = [*_rows_of_policy(policy, preset), *_row_of_inferences(preset, inferences, unfinished)]
    if inferences:
        rows += _rows_of_inference(preset, inferences[-1])
    rows.append(
        CheckRow(
            'exec_horizon', '', 'the caller says it' if exec_horizon is None else f'{exec_horizon}'
        )
    )
    problems = dict.fromkeys(i.problem for i in inferences if i.problem)
    return CheckReport(preset.name, tuple(rows), tuple(problems))


def _rows_of_policy(policy: Any, preset: Preset) -> list[CheckRow]:
    rows = [CheckRow('policy', preset.policy_class, type(unwrapped(policy)).__name__)]
    if preset.distribution:
        try:
            version = metadata.version(preset.distribution)
        except metadata.PackageNotFoundError:
            version = 'not installed'
        rows.append(CheckRow(preset.distribution, ', '.join(preset.versions), version))
    if preset.module:
        module = type(find_module(policy, preset.module)).__name__
        rows.append(CheckRow('submodule', preset.module, module, True))
    return rows


def _row_of_inferences(
    preset: Preset, inferences: list[Inference], unfinished: int
) -> list[CheckRow]:
    ends = 'the last call' if preset.ends == AFTER_CALLS else f'{preset.ends}()'
    found = str(len(inferences))
    if not inferences and unfinished:
        found = f'0 ({unfinished} calls, and no more)'
    return [CheckRow('inferences', f'1, ended by {ends}', found, bool(inferences))]


def _rows_of_inference(preset: Preset, inference: Inference) -> list[CheckRow]:
    rows = []
    if preset.module:
        features = inference.features
        calls = inference.expected_calls
        axes = ', '.join([*preset.axes, 'width'])
        shape = inference.shape
        rows += [
            CheckRow(
                'calls',
                'unknown' if calls is None else str(calls),
                str(inference.calls),
                calls == inference.calls,
            ),
            CheckRow('raw tensor', f'({axes})', str(shape), bool(shape)),
            CheckRow('dtype', '', inference.dtype),
            CheckRow('features', inference.feature_name, _shape(features), features is not None),
        ]
    if preset.actions:
        space = preset.action_space or 'space not stated'
        found = _shape(inference.actions)
        rows.append(CheckRow('actions', f'(1, horizon, action), {space}', found, found != 'none'))
    if preset.token_logits:
        found = _shape(inference.token_probability)
        rows.append(CheckRow('token statistics', '(tokens,)', found, found != 'none'))
    if preset.instruction:
        rows.append(CheckRow('instruction', preset.instruction, inference.instruction or 'none'))
    rows.append(CheckRow('inference time', '', f'{inference.inference_time:.3f} s'))
    return rows


def _shape(array: Any) -> str:
    return 'none' if array is None else str(array.shape)
