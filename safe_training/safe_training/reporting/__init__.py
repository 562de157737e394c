# SPDX-License-Identifier: Apache-2.0
"""Makes tables, figures, pages and videos from numbers.

numbers           formats numbers for people and for JSON
file_names        unique names of output files
tables/           tables, and their output formats
figures/          figures; a new figure is one entry of the catalogue
page/             the report page
video/            scores drawn onto videos

This subpackage may import every other subpackage except ``cli``.
"""
