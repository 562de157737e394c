# SPDX-License-Identifier: Apache-2.0
"""The report: one page with tables, figures and every rollout.

page              the page
tables            its tables
template/         its HTML, style and script
"""
