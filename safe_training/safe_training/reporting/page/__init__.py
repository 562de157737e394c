# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML page with tables, figures and every rollout.

page              the page
tables            its tables
data              its rollouts, as JSON that its script draws
videos            its videos
template/         its HTML, style and script
"""
