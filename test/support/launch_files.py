# SPDX-License-Identifier: Apache-2.0
"""Reads launch files without ``launch``, which PyPI does not have: arguments, nodes, parameters.

Python files are read as syntax trees and never run. XML files are read as XML.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

LAUNCH = Path(__file__).parents[2] / 'launch'
PYTHON_FILES = sorted(LAUNCH.glob('*.launch.py'))
XML_FILES = sorted(LAUNCH.glob('*.launch.xml'))

#: Modules whose functions make arguments.
_HELPERS = ('launch_arguments', 'launch_recording')
_NODES = {'Node', 'LifecycleNode', 'plain_node', 'managed_node', 'node_managed_here'}


@dataclass(frozen=True)
class Argument:
    """A declared argument; the choices are empty if every value is allowed."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class LaunchFile:
    """What a Python launch file declares and starts.

    Attributes
    ----------
    arguments : dict of str to Argument
    nodes : set of (package, executable)
    parameters : dict of str to dict
        Tables of arguments that are parameters: name of the table, then name and type.
    set_here : set of str
        Parameters that the file sets itself.
    """

    arguments: dict[str, Argument]
    nodes: set[tuple[str, str]]
    parameters: dict[str, dict[str, str]]
    set_here: set[str] = field(default_factory=set)


class _Module:
    """The functions and constants of one module, evaluated when they are needed."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text(encoding='utf-8'))
        self.functions = {n.name: n for n in self.tree.body if isinstance(n, ast.FunctionDef)}
        self.values: dict[str, ast.expr] = {}
        self.imported: dict[str, str] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = node.value
            if isinstance(node, ast.ImportFrom) and node.module:
                self.imported |= {alias.name: node.module for alias in node.names}

    def value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        """Return the value of an expression of the few kinds that launch files need."""
        match node:
            case ast.Constant(value):
                return value
            case ast.JoinedStr(values):
                return ''.join(str(self.value(part, names)) for part in values)
            case ast.FormattedValue(value):
                return self.value(value, names)
            case ast.List(elements) | ast.Tuple(elements):
                return list(self._elements(elements, names))
            case ast.Dict(keys, values):
                return {
                    self.value(key, names): self.value(value, names)
                    for key, value in zip(keys, values, strict=True)
                    if key is not None
                }
            case ast.Name(name):
                return self._named(name, names)
            case ast.Call(ast.Name(name), positional, keywords):
                values = list(self._elements(positional, names))
                given = {k.arg: self.value(k.value, names) for k in keywords if k.arg}
                return self._called(name, values, given)
        raise AssertionError(f'expected a simple expression, found {ast.unparse(node)}')

    def _elements(self, nodes: list[ast.expr], names: Mapping[str, Any]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self.value(node.value, names)
            else:
                yield self.value(node, names)

    def _named(self, name: str, names: Mapping[str, Any]) -> Any:
        if name in names:
            return names[name]
        if name in self.values:
            return self.value(self.values[name], {})
        assert name in self.imported, name
        return getattr(importlib.import_module(self.imported[name]), name)

    def _called(self, name: str, values: list[Any], given: dict[str, Any]) -> Any:
        if name == 'DeclareLaunchArgument':
            return Argument(
                values[0] if values else given['name'],
                given['default_value'],
                given['description'],
                tuple(given.get('choices', ())),
            )
        if name == 'FindPackageShare':
            return f'$(find-pkg-share {values[0]})'
        if name == 'PathJoinSubstitution':
            return '/'.join(values[0])
        if name in self.functions:
            return self._run(self.functions[name], values, given)
        return helper(name)._called(name, values, given)

    def _run(self, function: ast.FunctionDef, values: list[Any], given: dict[str, Any]) -> Any:
        accepted = [argument.arg for argument in function.args.args]
        defaults = function.args.defaults
        names = {
            name: self.value(default, {})
            for name, default in zip(
                accepted[len(accepted) - len(defaults) :], defaults, strict=True
            )
        }
        names |= dict(zip(accepted, values, strict=False)) | given
        for line in function.body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                names[line.targets[0].id] = self.value(line.value, names)
            if isinstance(line, ast.Return) and line.value is not None:
                return self.value(line.value, names)
        raise AssertionError(f'{function.name} returns nothing')


@cache
def helper(function: str) -> _Module:
    """Return the module of safe_bringup with a function that makes arguments."""
    for name in _HELPERS:
        module = _Module(LAUNCH / 'safe_bringup' / f'{name}.py')
        if function in module.functions:
            return module
    raise AssertionError(f'no function {function} in {_HELPERS}')


@cache
def read_python(path: Path) -> LaunchFile:
    """Return what a launch file declares and starts."""
    module = _Module(path)
    arguments = module.value(module.values['ARGUMENTS'], {})
    assert len({a.name for a in arguments}) == len(arguments), path.name
    tables = {
        name: {
            key.value: ast.unparse(value)
            for key, value in zip(table.keys, table.values, strict=True)
            if isinstance(key, ast.Constant)
        }
        for name, table in module.values.items()
        if name.endswith('PARAMETERS') and isinstance(table, ast.Dict)
    }
    return LaunchFile(
        {argument.name: argument for argument in arguments},
        set(_nodes(module)),
        tables,
        set(_set_here(module.tree)),
    )


def _nodes(module: _Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        named = {k.arg: k.value for k in node.keywords}
        if node.func.id in _NODES:
            package = named.get('package', ast.Constant('safe_monitor_node'))
            executable = named.get('executable') or node.args[1]
            if isinstance(package, ast.Constant) and isinstance(executable, ast.Constant):
                yield str(package.value), str(executable.value)
        if node.func.id == 'ExecutableInPackage':
            executable, package = node.args
            yield str(ast.literal_eval(package)), str(ast.literal_eval(executable))
    if 'LAYOUTS' in module.values:
        for package, executable, *_ in module.value(module.values['LAYOUTS'], {}).values():
            yield package, executable


def _set_here(tree: ast.AST) -> Iterator[str]:
    """Yield the keys of dicts whose values are typed parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                is_typed = (
                    isinstance(value, ast.Call)
                    and isinstance(value.func, ast.Name)
                    and value.func.id == 'ParameterValue'
                )
                if is_typed and isinstance(key, ast.Constant):
                    yield str(key.value)


@cache
def read_xml(path: Path) -> dict[str, Argument]:
    """Return the arguments of an XML launch file."""
    root = ElementTree.parse(path).getroot()
    return {
        (name := argument.attrib['name']): Argument(
            name,
            argument.attrib['default'],
            argument.attrib['description'],
            tuple(choice.attrib['value'] for choice in argument.findall('choice')),
        )
        for argument in root.findall('arg')
    }


def passed_on(path: Path) -> tuple[str, dict[str, str]]:
    """Return the file that an XML launch file includes, and the arguments that it passes."""
    (included,) = ElementTree.parse(path).getroot().findall('include')
    passed = {entry.attrib['name']: entry.attrib['value'] for entry in included.findall('arg')}
    return included.attrib['file'], passed
