#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC1091  # the build of the container makes these files
# Runs a command in the built workspace of the container.
set -eo pipefail
source /ros2_ws/venv/bin/activate
source /ros2_ws/install/setup.bash  # sources /opt/ros, too
exec "$@"
