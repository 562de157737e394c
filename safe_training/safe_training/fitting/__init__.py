# SPDX-License-Identifier: Apache-2.0
"""Functions that fit detectors on rollouts, one module for each family of detectors.

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

A fitter is ``fit(detector, rollouts, *, validation=None, progress=None)``; it fits the detector in
place. ``Detector.fit`` finds it by the entry points ``safe_monitor_node.fitters`` in ``setup.py``.
Detectors without training (:mod:`safe_monitor_node.detectors.stepwise`) do not need a fitter. This
subpackage imports only ``safe_monitor_node`` and ``vla_feature_bridge``.
"""
