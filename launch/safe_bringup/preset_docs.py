# SPDX-License-Identifier: Apache-2.0
"""Makes ``docs/reference/presets.md`` from the presets of taps and from their schema.

``python -m safe_bringup.preset_docs docs/reference/presets.md``
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields

from safe_bringup.generated_page import write_page
from vla_feature_bridge.taps.preset import CALLER, Preset, default_of
from vla_feature_bridge.taps.presets import load_preset, preset_names

INTRODUCTION = """\
<!-- Made by: python -m safe_bringup.preset_docs docs/reference/presets.md -->

# Presets of taps

A preset describes where the hidden state of a policy is, and what one inference is. A tap
(`vla_feature_bridge.taps.FeatureTap`) uses the preset. `python -m vla_feature_bridge.taps list`
lists the presets, `show PRESET` prints a preset, and `check PRESET --policy MODULE:FACTORY`
compares a preset with your policy.

## Presets of the package"""

PRESETS_NOTE = """\
*ran* means that the preset was checked with the classes of the policy, with small random weights.
*read* means that it was taken from the source code of the policy. The version is the version of the
package of the policy, or a commit of its repository."""

SCHEMA = """\
## Your own preset

A preset is a YAML file. Give its path instead of a name: `FeatureTap(policy, 'mine.yaml')`, or
`python -m vla_feature_bridge.taps check mine.yaml --policy my_robot:load`. An unknown key is
refused, and the error contains the nearest key. All keys except `name` have a default.

```yaml
name: mine
module: model.head               # its input is the hidden state
calls: config.num_steps          # once for each denoising step
axes: [denoise, horizon]
feature: pre_velocity
pooling: [horizon=mean, denoise=mean]
ends: infer
actions: [horizon, action]
actions_from: actions
action_space: robot
exec_horizon: 8
```

A *path* is the name of an attribute of the policy, with dots between its parts. It begins at the
policy itself, also if PEFT, `torch.compile` or data parallelism wraps the policy. Each key is also
a keyword of `FeatureTap`. The keyword overrides the preset: `FeatureTap(policy, 'lerobot_pi0',
exec_horizon=10)`."""

PROBLEMS = """\
## What a tap says

A tap never raises an error into the policy. `Inference.problem` describes the problem of an
inference, and `tap.problems` counts each kind of problem. The log has the first problem of each
kind. If features are wrong, the step is left out. Its number is not used again, so that the monitor
notices the gap."""

#: Kind of value in the schema, in words.
VALUES = {
    'texts': 'list of texts',
    'argument': 'number or name',
    'numbers': 'number, path, or a list of both',
    'keep': 'one of the four',
    'names': 'list of names',
    'pooling': 'list of AXIS=COMMAND',
    'vocabulary': '`all` or `fast`',
    'paths': 'path, or list of paths',
    'run or read': '`run` or `read`',
    'true or false': '`true` or `false`',
}

LOST, SENT, NONE = 'is left out', 'is sent', '-'
PROBLEM_KINDS = (
    (
        'no_calls',
        'The submodule was not called: the policy uses another submodule, or the submodule was '
        'compiled before the tap was attached.',
        LOST,
    ),
    ('wrong_calls', 'The number of calls of the submodule differs from the preset.', LOST),
    (
        'concurrent',
        'Two inferences ran at the same time in one policy. Only the tap of openpi in JAX reports '
        'this problem.',
        LOST,
    ),
    ('batch', 'The policy got several observations, or beam search is on.', LOST),
    ('shape', 'The axes or the width of the hidden state differ from the preset.', LOST),
    ('dtype', 'The hidden state is not float32, bfloat16, float16 or float64.', LOST),
    ('graph', 'The inference was recorded in a CUDA graph, whose replays call no tap.', LOST),
    (
        'dropped',
        'The thread of the tap fell behind: 256 inferences or 64 MB waited, and the oldest was '
        'dropped.',
        LOST,
    ),
    ('actions', 'The method returned no actions of the stated axes.', SENT),
    ('tokens', 'The output of the submodule is not logits, or they are not finite.', SENT),
    ('raised', 'The policy itself raised an exception. The tap passes it on.', NONE),
    ('unfinished', 'An episode ended before the last call of an inference (`ends: calls`).', NONE),
    ('callback', 'A function given to `on_inference` raised an exception.', SENT),
    ('sink', 'The sink raised an exception.', LOST),
    (
        'thread',
        'The thread of the tap ended, with the inference on which it worked, or cannot be started. '
        'The next inferences are sent.',
        NONE,
    ),
    ('no_sink', '`start` or `end` was called, but the tap has no sink.', NONE),
    ('closed', '`start` or `end` was called after `detach`.', NONE),
    ('replaced', 'A wrapped method was replaced by other code after the tap was attached.', NONE),
    ('internal', 'A defect of the tap. Please report it.', LOST),
)


def page() -> str:
    """Return the whole page as Markdown."""
    presets = [load_preset(name) for name in preset_names()]
    parts = (
        INTRODUCTION,
        table(('preset', 'submodule, calls', 'raw feature', 'ends, actions', 'checked'), presets),
        PRESETS_NOTE,
        SCHEMA,
        schema_table(),
        PROBLEMS,
        problem_table(),
    )
    return '\n\n'.join(parts) + '\n'


def table(header: Sequence[str], presets: Iterable[Preset]) -> str:
    """Return the Markdown table of presets."""
    return markdown([header, *(preset_row(preset) for preset in presets)])


def preset_row(preset: Preset) -> tuple[str, ...]:
    """Return the cells of one preset."""
    calls = ', '.join(map(str, preset.calls))
    where = f'`{preset.module}`, calls `{calls}`' if preset.module else 'none'
    keep = '' if preset.keep == 'all' or not preset.module else f', keep `{preset.keep}`'
    feature = f'({", ".join(preset.axes)}) as `{preset.spec}`' if preset.module else '`none`'
    tokens = ', token statistics' if preset.token_logits else ''
    space = f', {preset.action_space}' if preset.action_space else ''
    actions = f'({", ".join(preset.actions)}){space}' if preset.actions else 'no actions'
    horizon = ', '.join(map(str, preset.exec_horizon))
    executed = 'the caller says' if horizon == CALLER else f'`{horizon}`'
    versions = f' {", ".join(preset.versions)}' if preset.versions else ''
    return (
        f'`{preset.name}`: {preset.title}',
        f'{where}{keep}',
        f'{feature}{tokens}',
        f'`{preset.ends}`; {actions}; executed: {executed}',
        f'{"ran" if preset.verified == "run" else "read"}{versions}',
    )


def schema_table() -> str:
    """Return the Markdown table of the keys of a preset."""
    rows = [('key', 'value', 'default', 'meaning')]
    for entry in fields(Preset):
        default = default_of(entry.name)
        if isinstance(default, tuple):
            default = ', '.join(map(str, default))
        shown = 'required' if entry.name == 'name' else f'`{yaml_value(default)}`'
        kind = entry.metadata['kind']
        rows.append((f'`{entry.name}`', VALUES.get(kind, kind), shown, entry.metadata['doc']))
    return markdown(rows)


def problem_table() -> str:
    """Return the Markdown table of the kinds of problems."""
    rows = [(f'`{kind}`', meaning, step) for kind, meaning, step in PROBLEM_KINDS]
    return markdown([('kind', 'meaning', 'the step'), *rows])


def yaml_value(value: object) -> str:
    """Return a default value in the syntax of a preset file."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != '' else "''"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first row is its header."""
    escaped = [[cell.replace('|', '\\|') for cell in row] for row in rows]
    escaped.insert(1, ['---'] * len(escaped[0]))
    return '\n'.join(f'| {" | ".join(row)} |' for row in escaped)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page to the file that is given, or print it."""
    return write_page(page(), __doc__, arguments)


if __name__ == '__main__':
    sys.exit(main())
