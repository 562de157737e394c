# SPDX-License-Identifier: Apache-2.0
"""Makes tables, figures, pages and videos from numbers.

numbers           formats numbers for people and for JSON
file_names        names of output files, each different
tables/           tables, and the formats that they are written in
figures/          figures; a new figure is one entry of the catalogue
page/             the report page
video/            scores drawn onto videos

This subpackage may import every other subpackage except ``cli``.
"""
