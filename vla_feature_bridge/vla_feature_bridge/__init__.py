# SPDX-License-Identifier: Apache-2.0
"""What leaves a policy at each inference: steps, pooling, signals, rollouts and their replay."""
