# SPDX-License-Identifier: Apache-2.0
"""Many configurations, resumed after an interruption; results on disk.

grid              the configurations to try
plan              what is to be computed
folder            what has been computed
unit              computes one unit: all configurations of a detector on a split
runners           where units run: here, or on a Ray cluster
run               the sweep: what is missing is run and kept
results           the results on disk
unfinished        which results are missing
grids/            grids that we ship

This room imports ``evaluation`` and the rooms below it.
"""
