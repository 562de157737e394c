# SPDX-License-Identifier: Apache-2.0
"""What leaves a policy at each inference: policy steps, pooling, action signals, rollouts, taps and replay."""
