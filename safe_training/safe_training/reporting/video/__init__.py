# SPDX-License-Identifier: Apache-2.0
"""Scores drawn onto videos.

frames            finds a rollout's video, and which policy step each frame shows
overlay           writes a video with the score, the band and the alarm
"""
