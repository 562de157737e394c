# SPDX-License-Identifier: Apache-2.0
"""Many configurations over task splits, resumed after an interruption; results on disk.

grid              the configurations to try
plan              the units of a sweep: what is computed and written as one
folder            which sweep a results folder belongs to
unit              computes one unit
runners           where units run: in this process, or on a Ray cluster
run               the sweep: runs the units that are missing and keeps their results
results           the results on disk
unfinished        which results of a sweep are missing
grids/            grids that come with this package

This room imports ``evaluation`` and the rooms below it.
"""
