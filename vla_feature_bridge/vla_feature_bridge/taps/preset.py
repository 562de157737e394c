# SPDX-License-Identifier: Apache-2.0
"""A preset describes where the hidden state of a policy is, and what one inference is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.taps.errors import TapError, nearest
from vla_feature_bridge.taps.fields import KEEPS, checked

#: Name of the feature of a policy without hidden states, as the readers call it.
NO_FEATURE = 'none'

ACTION_AXES = ('batch', 'horizon', 'action')
#: ``calls`` that are known only at the end of an inference.
COUNTED = ('tokens', 'actions')
CALLER = 'caller'
#: ``ends`` of a policy without a method that makes exactly one inference.
AFTER_CALLS = 'calls'
RETURNED = 'returned'


def _field(kind: str, doc: str, default: Any) -> Any:
    return field(default=default, metadata={'kind': kind, 'doc': doc})


@dataclass(frozen=True)
class Preset:
    """How to tap one policy. Each field is a key of a preset file; all but ``name`` have defaults.

    A *path* names an attribute of the policy: names with dots between them, ``model.head``. It
    begins at the policy itself, also if PEFT, ``torch.compile`` or data parallelism wraps the
    policy. A name can also be a key of a mapping or an index of a list.

    Raises
    ------
    TapError
        A field has another type or form, or two fields contradict each other.
    """

    name: str = field(metadata={'kind': 'text', 'doc': 'Name of the preset.'})
    title: str = _field('text', 'Name of the policy for people.', '')
    policy: str = _field('text', 'Name of the policy in the steps that are sent.', '')
    distribution: str = _field(
        'text', 'The package of the policy, as `pip` knows it; empty if it has none.', ''
    )
    versions: tuple[str, ...] = _field(
        'texts', 'Versions (of `distribution`, or commits) for which the preset was checked.', ()
    )
    verified: str = _field(
        'run or read',
        '`run`: checked with the classes of the policy. `read`: taken from their source code.',
        'read',
    )
    policy_class: str = _field(
        'text', 'Name of the class of the policy, by which the preset is found.', ''
    )
    has: str = _field(
        'path',
        'A submodule that distinguishes the policy from others that have `module` too; a policy '
        'without it is refused. Empty: not checked.',
        '',
    )
    module: str = _field(
        'path',
        'The submodule whose input is the hidden state; empty if none is read (black box).',
        '',
    )
    argument: int | str = _field(
        'argument',
        'Argument of the submodule that is the hidden state: a position, or the name of a keyword.',
        0,
    )
    calls: tuple[int | str, ...] = _field(
        'numbers',
        'How often the submodule is called in one inference: a number, the path of a number, '
        '`tokens` (once for each generated token) or `actions` (once for each action dimension). '
        'In a list, the first path that exists is used.',
        (1,),
    )
    keep: str = _field(
        'keep',
        'The part of the input `[batch, positions, width]` to keep. `all`; `[:, -1]`: the last '
        'position; `[:, -action_horizon:]`: the last `action_horizon` positions; `channels_first`: '
        'everything, and the input is `[batch, width, positions]`.',
        'all',
    )
    action_horizon: tuple[int | str, ...] = _field(
        'numbers', 'The number of positions for `[:, -action_horizon:]`, or its path.', ()
    )
    axes: tuple[str, ...] = _field(
        'names',
        'Names of the axes of the stacked tensor in front of the width. The first is the axis of '
        'the calls, unless `calls` is 1.',
        (),
    )
    feature: str = _field(
        'text',
        'Name of the feature. Recordings of the same quantity have the same name. Default: the '
        'path of the submodule.',
        '',
    )
    pooling: tuple[tuple[str, str], ...] = _field(
        'pooling', 'Default pooling, AXIS=COMMAND for each axis; empty keeps the raw tensor.', ()
    )
    ends: str = _field(
        'path',
        'The method whose return ends an inference, such as `predict_action_chunk`; or `calls`: an '
        'inference ends with its last call.',
        AFTER_CALLS,
    )
    actions: tuple[str, ...] = _field(
        'names',
        'Axes of the actions that the method returns: the last of `batch`, `horizon`, `action`; '
        'empty if it returns none.',
        (),
    )
    actions_from: str = _field(
        'text',
        'Place of the actions in the result of the method: names of entries with dots between '
        'them; `*` '
        'joins all entries of a mapping. Empty: the method returns the actions themselves.',
        '',
    )
    action_space: str = _field(
        'text', 'Space of these actions: `normalized`, `robot` (units of the robot), or a name.', ''
    )
    token_logits: bool = _field(
        'true or false',
        'The output of the submodule is the logits of one token, `[..., vocabulary]`, from which '
        'probability and entropy are computed.',
        False,
    )
    vocabulary: str = _field(
        'vocabulary',
        'Tokens of the distribution: `all`, or `fast` (the action tokens of pi0-FAST in LeRobot).',
        'all',
    )
    token_ids: tuple[str, ...] = _field(
        'paths',
        'Where the generated tokens come from: `returned` (the method returns the sequences of '
        '`generate`), or methods that return them.',
        (),
    )
    end_token: str = _field(
        'text', 'The token that ends the action. Everything after it is not read.', ''
    )
    tokenizer: str = _field('path', 'The tokenizer that knows `end_token`.', '')
    exec_horizon: tuple[int | str, ...] = _field(
        'numbers',
        'How many actions are executed before the next inference: a number, the path of a number, '
        'or `caller` (the policy does not know).',
        (CALLER,),
    )
    instruction: str = _field(
        'text', 'Key of the instruction in the first argument of the method; empty if none.', ''
    )
    reset: str = _field(
        'path', 'The method that the robot calls before each episode; empty if none.', ''
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = checked(
                self.name, entry.name, entry.metadata['kind'], getattr(self, entry.name)
            )
            object.__setattr__(self, entry.name, value)
        if self.module and not self.feature:
            object.__setattr__(self, 'feature', self.module)
        _check_together(self)

    @property
    def spec(self) -> FeatureSpec:
        """The feature and its pooling; the width is not known (0)."""
        if not self.module:
            return FeatureSpec(NO_FEATURE, 0)
        return FeatureSpec(self.feature, 0, self.axes, self.pooling)

    @property
    def is_by_hand(self) -> bool:
        """True if the caller of the tap named a submodule instead of a preset."""
        return self.name == self.module

    @property
    def stacked(self) -> bool:
        """True if the first axis is the axis of the calls."""
        return self.calls != (1,)

    @property
    def positions(self) -> int:
        """Number of axes between batch and width in the kept part of one input."""
        return len(self.axes) - self.stacked

    def with_changes(self, **changes: Any) -> Preset:
        """Return a preset in which some fields differ; raises TapError as the class does."""
        _check_keys(f'preset {self.name}', changes)
        return replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Preset:
        """Return the preset that a file holds.

        Raises
        ------
        TapError
            The values are not a mapping, a key is unknown or missing, or a value is wrong.
        """
        if not isinstance(values, Mapping):
            raise TapError(
                where=where, expected='keys and values of a preset', found=type(values).__name__
            )
        _check_keys(where, values)
        if 'name' not in values:
            raise TapError(where=where, expected='the key name', found='none')
        try:
            return cls(**values)
        except TapError as error:
            raise TapError(f'{where}: {error}') from error


def _check_keys(where: str, values: Mapping[Any, Any]) -> None:
    known = [entry.name for entry in fields(Preset)]
    for key in values:
        if key not in known:
            raise TapError(
                where=where,
                expected=f'fields of a preset ({", ".join(known)})',
                found=repr(key),
                advice=f'nearest: {nearest(str(key), known) or "none"}',
            )


def default_of(name: str) -> Any:
    """Return the default of a field of a preset, or None if the field has no default."""
    (entry,) = (entry for entry in fields(Preset) if entry.name == name)
    return None if entry.default is MISSING else entry.default


# -- fields that belong together


def _check_together(preset: Preset) -> None:
    """Raise TapError if two fields contradict each other."""
    counted = [source for source in preset.calls if source in COUNTED]
    rules = (
        (bool(preset.name), 'name', 'a name', 'none'),
        (
            bool(preset.module) or preset.ends != AFTER_CALLS,
            'ends',
            'a method, because no submodule is read',
            AFTER_CALLS,
        ),
        (
            not counted or (preset.ends != AFTER_CALLS and len(preset.calls) == 1),
            'calls',
            f'a number or a path, because `{counted}` is known only at the end of a method',
            str(list(preset.calls)),
        ),
        ('actions' not in counted or bool(preset.actions), 'actions', 'axes (calls)', 'none'),
        ('tokens' not in counted or bool(preset.token_ids), 'token_ids', 'a source', 'none'),
        (
            RETURNED not in preset.token_ids or len(preset.token_ids) == 1,
            'token_ids',
            f'`{RETURNED}` alone, or methods',
            str(list(preset.token_ids)),
        ),
        (
            not preset.end_token or bool(preset.tokenizer and preset.token_ids),
            'end_token',
            'also tokenizer and token_ids',
            preset.end_token,
        ),
        (
            (preset.keep == KEEPS[2]) == bool(preset.action_horizon),
            'action_horizon',
            f'a source with keep {KEEPS[2]}, and none otherwise',
            str(list(preset.action_horizon)),
        ),
        (
            preset.actions == ACTION_AXES[3 - len(preset.actions) :],
            'actions',
            f'the last names of {list(ACTION_AXES)}',
            str(list(preset.actions)),
        ),
        (
            not preset.actions or preset.ends != AFTER_CALLS,
            'actions',
            'none, because no method returns them (ends: calls)',
            str(list(preset.actions)),
        ),
        *_rules_of_axes(preset),
    )
    for holds, name, expected, found in rules:
        if not holds:
            raise TapError(where=f'preset {preset.name}: {name}', expected=expected, found=found)
    try:
        assert preset.spec is not None
    except PoolingError as error:
        raise TapError(f'preset {preset.name}: {error}') from error


def _rules_of_axes(preset: Preset) -> tuple[tuple[bool, str, str, str], ...]:
    least = 0 if preset.keep in ('all', KEEPS[1]) else 1
    most = 0 if preset.keep == KEEPS[1] else 1 if preset.keep != 'all' else 8
    found = str(list(preset.axes))
    calls = 'the axis of the calls' if preset.stacked else 'no axis of calls'
    return (
        (bool(preset.module) or not preset.axes, 'axes', 'none without a module', found),
        (
            not preset.module or least <= preset.positions <= most,
            'axes',
            f'{calls} and {least if least == most else f"{least} to {most}"} axes of positions '
            f'(keep {preset.keep}, calls {list(preset.calls)})',
            found,
        ),
    )
