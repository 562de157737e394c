# SPDX-License-Identifier: Apache-2.0
"""Evaluates many configurations over task splits.

A sweep continues after an interruption. Results are stored on disk.

grid              the configurations to try
plan              the units of a sweep; a unit is computed and written together
folder            the manifest that connects a results folder with one sweep
unit              computes one unit
runners           where units run: in this process, or on a Ray cluster
run               the sweep: runs the units that are missing and keeps their results
results           the results on disk
unfinished        finds missing results of a sweep
grids/            grids that come with this package

This subpackage imports ``evaluation`` and the subpackages that ``evaluation`` imports.
"""
