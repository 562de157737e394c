# SPDX-License-Identifier: Apache-2.0
"""Writes a table as HTML."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from safe_training.reporting.tables.model import ResultTable


def to_html(table: ResultTable) -> Markup:
    """Return a table as an HTML fragment. All text from data is escaped.

    The first cell of each row is its heading. A flagged cell has the class 'flagged' and contains
    its flag in brackets. The explanation of a column is the tooltip of its title.
    """
    template = environment('safe_training.reporting.tables').get_template('table.html.j2')
    return Markup(template.render(table=table))


@cache
def environment(package: str) -> Environment:
    """Return the templates in the folder ``template`` of a package.

    They escape everything except `markupsafe.Markup`, and raise an error for undefined names.
    """
    return Environment(
        loader=PackageLoader(package, 'template'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
