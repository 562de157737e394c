# SPDX-License-Identifier: Apache-2.0
"""Tables and their formats.

model             what a table is
entries           results of a sweep, aggregated
aggregated        the paper's table and ours
evaluation        the tables of ``evaluate``
results           the tables of a results folder, in all formats
markdown, latex, csv   writers
"""
