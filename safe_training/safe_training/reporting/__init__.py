# SPDX-License-Identifier: Apache-2.0
"""Numbers in, something to look at out.

numbers           numbers as people and JSON read them
tables/           tables and their formats
figures/          figures
page/             the report page
video/            scores drawn onto videos

This room imports every other room but ``cli``.
"""
