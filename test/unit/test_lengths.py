# SPDX-License-Identifier: Apache-2.0
"""Modules and functions are short enough to read."""

import ast

from source_tree import (
    PACKAGES,
    ROOT,
    sources,
)

LONGEST_MODULE = 400
LONGEST_FUNCTION = 60


def files_to_read():
    places = [ROOT / 'launch' / 'safe_bringup', ROOT / 'test' / 'bench']
    files = [source for package in PACKAGES for source in sources(package)]
    return files + [source for place in places for source in place.rglob('*.py')]


def test_no_module_is_too_long_to_read():
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files_to_read()
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE}
    assert not too_long, f'divide them; a module has at most {LONGEST_MODULE} lines'


def function_lengths(text):
    """Yield the name, first line and number of lines of each function, without its docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            documented = len(docstring.split('\n')) if docstring else 0
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1 - documented


def test_no_function_is_too_long_to_read():
    too_long = [
        f'{file.relative_to(ROOT)}:{line} {name}: {length} lines'
        for file in files_to_read()
        for name, line, length in function_lengths(file.read_text())
        if length > LONGEST_FUNCTION
    ]
    assert not too_long, f'divide them; a function has at most {LONGEST_FUNCTION} lines'


def test_a_docstring_does_not_make_a_function_long():
    text = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    assert list(function_lengths(text)) == [('f', 1, 2)]
