# SPDX-License-Identifier: Apache-2.0
"""Scores drawn onto videos.

frames            finds the video of a rollout, and the policy step of each frame
overlay           writes a video with the score, the band and the alarm
"""
