#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a command in the built workspace of the container.
set -eo pipefail
source /ros2_ws/venv/bin/activate
source /ros2_ws/install/setup.bash  # sources /opt/ros, too
exec "$@"
