# SPDX-License-Identifier: Apache-2.0
"""Rollouts in, a fitted detector out. One module a family of detectors.

data              the rollouts of a training part, stacked and checked
losses            the losses of the learned detectors
learned           SAFE-MLP and SAFE-LSTM
batched           many learned detectors at once
lstm_kernel       the LSTM layer of many detectors at once
precision         number formats of their matrix products
density           RND and logpZO
embedding         distances in the feature space
probe             the linear probe
probe_regression  its logistic regressions
untrained         detectors that learn nothing

``Detector.fit`` finds these functions by the entry points ``safe_monitor_node.fitters`` in
``setup.py``. This room imports ``safe_monitor_node`` and ``vla_feature_bridge`` only.
"""
