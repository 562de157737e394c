# SPDX-License-Identifier: Apache-2.0
"""Fit a failure detector on some tasks, save it, and evaluate it on the unseen tasks.

    python examples/fit_and_judge.py my_set my_detector

The set is a rollout set, such as `own_recordings.py` writes, or any recording that
`python -m safe_training info` recognises.
"""

import sys

import safe_training as st

source, folder = sys.argv[1:]
rollouts = st.labelled(st.load_rollouts(source))
split = st.choose_split(rollouts, split=0)
print('trained on:', ', '.join(map(str, split.seen_tasks)))
print('never seen:', ', '.join(map(str, split.unseen_tasks)))
detector = st.fit('linear_probe', rollouts, split, params={'inputs': 'features'})
detector.save(folder)
print(st.judge(detector, rollouts).table())
