# SPDX-License-Identifier: Apache-2.0
"""Tables: builders make a :class:`ResultTable` from results, and writers convert it to text.

model             the data model of a table
measures          columns of the numbers that several tables show
numbers           cells and sentences of the numbers that several tables show
entries           the chosen combination of each method in the results of a sweep
aggregated        builder: the paper's Table 1 and the robust tables
compared          bold cells and notes by paired intervals over tasks
tasks             builder: the numbers of each task
exact             builder: every number of some entries, for programs
evaluation        builder: the tables of an evaluation
live_parity       builder: the differences of a live session
bands             builder: promised and realised false-alarm rates
results           all tables of a results folder as text, in each format
terminal, markdown, latex, csv, html   writers
template/         the HTML of a table
"""
