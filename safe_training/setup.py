# SPDX-License-Identifier: Apache-2.0
"""Installs the package safe_training (ament_python)."""

import ast
import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'safe_training'

#: Messages in a recording. Their definitions are in safe_msgs. safe_training needs copies, because
#: it reads and writes recordings without ROS 2.
DEFINITIONS = ['EpisodeEvent.msg', 'FailureScore.msg', 'PolicyStep.msg', 'Tensor.msg']


def copy_definitions() -> None:
    """Copy the definitions from safe_msgs: of this checkout, or else of the installed one."""
    here = Path(__file__).resolve().parent  # colcon runs a symbolic link to this file
    copies = here / PACKAGE / 'definitions'
    prefixes = filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep))
    places = [here.parent, *(Path(prefix, 'share') for prefix in prefixes)]
    for folder in (place / 'safe_msgs' / 'msg' for place in places):
        if all((folder / name).is_file() for name in DEFINITIONS):
            copies.mkdir(exist_ok=True)
            for name in DEFINITIONS:
                shutil.copyfile(folder / name, copies / name)
            return
    if not all((copies / name).is_file() for name in DEFINITIONS):  # a source archive has copies
        raise SystemExit(
            f'{copies}: expected {", ".join(DEFINITIONS)} in safe_msgs, found neither '
            f'{here.parent / "safe_msgs"} nor an installed package safe_msgs; build from a '
            'checkout of the whole repository, or build and source safe_msgs first'
        )


copy_definitions()


def fitters() -> dict[str, str]:
    """Return the table FITTERS of the subpackage ``fitting``.

    The module is not imported: its imports may not be installed yet.
    """
    source = Path(__file__).resolve().parent / PACKAGE / 'fitting' / '__init__.py'
    for node in ast.parse(source.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == 'FITTERS':
            return dict(ast.literal_eval(node.value))
    raise SystemExit(f'{source}: expected the table FITTERS, found none; restore the file')


def verbs() -> list[str]:
    """Return the verbs of the command line, read from the table VERBS without an import."""
    source = Path(__file__).resolve().parent / PACKAGE / 'cli' / 'main.py'
    for node in ast.parse(source.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'VERBS':
            return [ast.literal_eval(key) for key in node.value.keys]
    raise SystemExit(f'{source}: expected the table VERBS, found none; restore the file')


#: `ros2 safe label` labels a running episode.
RENAMED = {'label': 'label-recording'}

setup(
    name=PACKAGE,
    version='0.2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={
        PACKAGE: [
            'definitions/*.msg',
            'py.typed',
            'reporting/page/template/*',
            'reporting/tables/template/*',
            'sweep/grids/*.yaml',
        ]
    },
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
    ],
    python_requires='>=3.10',
    install_requires=[
        'backports.zstd>=1.0',
        'jinja2>=3.1',
        'lz4>=4.0',
        'matplotlib>=3.6',
        'ml_dtypes>=0.5',
        'numpy>=1.26',
        'pyarrow>=17',
        'rich>=13',
        'rosbags>=0.11.9',
        'ruamel.yaml>=0.17',
        'scikit-learn>=1.4',
        'scipy>=1.11',
        'setuptools',
        'torch>=2.6',
    ],
    extras_require={
        'ray': ['ray>=2.40'],
        'test': ['hypothesis', 'pytest'],  # colcon test looks here
        'umap': ['umap-learn>=0.5'],
        'vision': ['opencv-python-headless>=4.5,<5'],
    },
    zip_safe=False,
    maintainer='SAFE for ROS 2 maintainers',
    maintainer_email='maintainers@safe-ros.org',
    description='Makes a calibrated failure detector from recorded rollouts.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': ['safe_training = safe_training.cli.main:main'],
        'safe_monitor_node.fitters': [
            f'{name} = {function}' for name, function in fitters().items()
        ],
        # Where ros2cli or safe_monitor_node looks for verbs: `ros2 safe fit`.
        'ros2safe.verb': [
            f'{RENAMED.get(name, name)} = safe_training.cli.ros2_verbs:{name.replace("-", "_")}'
            for name in verbs()
        ],
    },
)
