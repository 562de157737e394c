# SPDX-License-Identifier: Apache-2.0
"""Figures.

style             colours, markers, legends, saving
score_curves      scores over time
projectors        names of projections
feature_map       the feature space on two axes
detections        alarms, promises, lead times
catalogue         every figure of a judged set
"""
