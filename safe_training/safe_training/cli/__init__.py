# SPDX-License-Identifier: Apache-2.0
"""The command line: argparse and printing, one module for each verb.

main              the table of verbs; runs one verb
parsing           the parser of a verb, and the error of wrong usage
renamed           names of version 0.1 that have changed
options           options that several verbs share
params            parameters of detectors from ``--param``
progress          progress of long work
messages          messages about single episodes
evaluate_only     options of ``evaluate`` that print only one result
ros2_verbs        the verbs as verbs of ``ros2 safe``

The other modules are the verbs: ``info``, ``convert``, ``label``, ``fit``, ``calibrate``,
``evaluate``, ``judge``, ``compare_bands``, ``figures``, ``overlay``, ``report``, ``sweep`` and
``table``. The module of a verb contains ``DESCRIPTION``, ``EXAMPLE``, ``add_arguments(parser)`` and
``run(args)``. It imports the other subpackages inside ``run``, so that ``--help`` does not load
PyTorch. No other subpackage imports ``cli``.
"""
