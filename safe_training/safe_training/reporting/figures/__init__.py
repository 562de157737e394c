# SPDX-License-Identifier: Apache-2.0
"""Figures.

catalogue         all figures of a set of scored rollouts; a new figure is one entry
style             common style of all figures: colours, markers, legends, saving
score_curves      scores over the policy steps
promises          promised and realised false-alarm rates
detections        times of alarms
probabilities     scores that are probabilities
feature_map       the feature space on two axes
projectors        names of the projections of the feature map
"""
