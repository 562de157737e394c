# SPDX-License-Identifier: Apache-2.0
"""Dumps of OpenVLA, written for tests."""

import csv
import pickle

import torch

ACTIONS = ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'dgripper')
VARIANCES = ('total_var', 'general_var', 'pos_var', 'rot_var', 'gripper_var')
SAMPLES = (*VARIANCES, 'entropy_linkage.01', 'entropy_linkage.05')


def write_episode(
    folder, task=0, episode=0, success=True, steps=4, width=6, tokens=7, samples=False, **changes
):
    """Write one OpenVLA episode; ``changes`` replace entries of its record, None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f'task{task}--ep{episode}--succ{int(success)}'
    generator = torch.Generator().manual_seed(100 * task + episode)
    record = {
        'hidden_states': torch.randn(steps, tokens, width, generator=generator).bfloat16(),
        'task_suite_name': 'libero_10',
        'task_id': task,
        'task_description': f'do thing {task}',
        'eposide_idx': episode,
        'episode_success': success,
    } | changes
    record = {key: value for key, value in record.items() if value is not None}
    stem.with_suffix('.pkl').write_bytes(pickle.dumps(record))
    names = ['action/timestep', *(f'action/{name}' for name in ACTIONS)]
    if samples:
        names += [f'action/{name}' for name in SAMPLES]
        names += [f'action/cum_{name}' for name in SAMPLES]
    else:
        names += [f'action/token_{i}_{what}' for i in range(tokens) for what in ('prob', 'entropy')]
    with stem.with_suffix('.csv').open('w', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for step in range(steps):
            writer.writerow([step, *(step + 0.01 * i for i in range(len(names) - 1))])
    return stem


def listing(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob('*'))
