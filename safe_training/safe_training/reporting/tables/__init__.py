# SPDX-License-Identifier: Apache-2.0
"""Tables: builders make a :class:`ResultTable` of results, writers turn it into text.

model             what a table is
measures          columns of the numbers that several tables show
entries           results of a sweep: of each method the combination that is chosen
aggregated        builder: the paper's Table 1 and the robust tables
exact             builder: every number of some entries, for programs
evaluation        builder: the tables of an evaluation
bands             builder: promised and realised false-alarm rates
results           the texts of all tables of a results folder, in each format
terminal, markdown, latex, csv, html   writers
template/         the HTML of a table
"""
