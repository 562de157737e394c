# SPDX-License-Identifier: Apache-2.0
"""From numbers to tables, figures, pages and videos.

numbers           numbers as people and JSON read them
tables/           tables, and the formats that they are written in
figures/          figures; a new figure is one entry of the catalogue
page/             the report page
video/            scores drawn onto videos

This room may import every other room but ``cli``.
"""
