# SPDX-License-Identifier: Apache-2.0
"""Many configurations, resumed after an interruption; results on disk.

grid              the configurations to try
plan              what is to be computed
folder            what has been computed
run               computes it
results           the results on disk
unfinished        which results are missing
grids/            grids that we ship

This room imports ``evaluation`` and the rooms below it.
"""
