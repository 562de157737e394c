# SPDX-License-Identifier: Apache-2.0
"""What the five packages promise as packages: one version, change logs, interfaces, tests."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

TOP = Path(__file__).parents[2]
FOLDERS = {
    'safe_msgs': 'safe_msgs',
    'vla_feature_bridge': 'vla_feature_bridge',
    'safe_monitor_node': 'safe_monitor_node',
    'safe_training': 'safe_training',
    'safe_bringup': 'launch',
}
PYTHON_PACKAGES = [name for name in FOLDERS if name != 'safe_msgs']

every_package = pytest.mark.parametrize('name', FOLDERS)
every_python_package = pytest.mark.parametrize('name', PYTHON_PACKAGES)


def folder(name: str) -> Path:
    return TOP / FOLDERS[name]


def manifest_version(name: str) -> str:
    version = ElementTree.parse(folder(name) / 'package.xml').getroot().findtext('version')
    assert version is not None
    return version


def test_all_packages_have_one_version():
    stated = {f'{FOLDERS[name]}/package.xml': manifest_version(name) for name in FOLDERS}
    for name in PYTHON_PACKAGES:
        # catkin_prepare_release looks for exactly this and refuses to release without it.
        found = re.findall(
            r'version=[\'"](\d+\.\d+\.\d+)[\'"],', (folder(name) / 'setup.py').read_text()
        )
        assert len(found) == 1, f'{name}/setup.py: version=... must stand there once, as text'
        stated[f'{FOLDERS[name]}/setup.py'] = found[0]
    assert len(set(stated.values())) == 1, (
        f'{stated}; catkin_prepare_release --version X.Y.Z sets all of them'
    )


@every_package
def test_the_change_log_has_dates_and_knows_the_version(name):
    changelog = pytest.importorskip('catkin_pkg.changelog')
    releases = pytest.importorskip('catkin_pkg.package_version')
    log = changelog.get_changelog_from_path(str(folder(name)), name)
    assert log is not None, f'{name} has no CHANGELOG.rst'
    dates = {version: date for version, date, content in log.foreach_version() if content}
    assert all(dates.values())
    assert dates and min(dates) == '0.1.0'
    assert manifest_version(name) in dates or releases.get_forthcoming_label(log.rst), (
        f'{name} is at {manifest_version(name)}, but its change log has neither that version '
        'nor a section Forthcoming'
    )


@every_package
def test_the_package_says_what_it_is(name):
    assert (folder(name) / 'README.md').read_text(encoding='utf-8').startswith(f'# {name}\n')


@every_python_package
def test_colcon_finds_pytest(name):
    setup = pytest.importorskip('colcon_python_setup_py.package_identification.python_setup_py')
    colcon = pytest.importorskip('colcon_core.task.python.test')
    data = setup.get_setup_information(folder(name) / 'setup.py')
    assert colcon.has_test_dependency(data, 'pytest'), (
        "setup.py needs extras_require={'test': ['pytest']}, or colcon test runs nothing"
    )


@every_python_package
def test_pytest_looks_where_colcon_looks(name, pytestconfig):
    assert f'{FOLDERS[name]}/test' in pytestconfig.getini('testpaths')


def test_every_interface_is_built():
    package = folder('safe_msgs')
    files = {
        path.relative_to(package).as_posix()
        for pattern in ('msg/*.msg', 'srv/*.srv')
        for path in package.glob(pattern)
    }
    listed = re.findall(r'\b(?:msg|srv)/\w+\.\w+', (package / 'CMakeLists.txt').read_text())
    assert sorted(listed) == sorted(files)


@pytest.mark.parametrize(
    'path',
    [*folder('safe_msgs').glob('msg/*.msg'), *folder('safe_msgs').glob('srv/*.srv')],
    ids=lambda path: path.name,
)
def test_every_field_of_an_interface_is_described(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    assert lines[0].startswith('# '), 'the first lines say what the message is for'
    for line in lines:
        if line and line != '---' and not line.startswith('#'):
            assert ' # ' in line, f'{path.name}: no comment: {line}'
