# SPDX-License-Identifier: Apache-2.0
"""The parameters of the fleet node. Its robots have the parameters of the monitor."""

from __future__ import annotations

from vla_feature_bridge.ros.parameters import Parameter

PARAMETERS = (
    Parameter(
        'robots_file',
        '',
        'YAML file that lists the robots: their namespaces, and the parameters of their monitors.',
    ),
    Parameter(
        'threads',
        1,
        'CPU threads of the matrix products of all detectors together.',
        1,
        256,
    ),
    Parameter('diagnostics_period', 1.0, 'Period of /diagnostics of the fleet [s].', 0.05, 60.0),
)
