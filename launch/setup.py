# SPDX-License-Identifier: Apache-2.0
"""Installs the package safe_bringup (ament_python)."""

import sys
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'safe_bringup'


def recordings() -> list[tuple[str, list[str]]]:
    """Return the recorded rollouts of the demo, by the folder that they are installed in.

    ``data`` is a symbolic link to the folder test/data of the repository. A package folder that was
    copied alone has no recordings: it is built without them.
    """
    files = [path for path in sorted(Path('data').glob('**/*')) if path.is_file()]
    if not files and {'install', 'develop', 'install_data', 'bdist_wheel'} & set(sys.argv):
        print(
            f'{Path("data").absolute()}: expected the recorded rollouts of the demo, found none; '
            'demo.launch.py will need SAFE_DEMO_DATA: build from a checkout of the whole '
            'repository to install the rollouts',
            file=sys.stderr,
        )
    return [
        (f'share/{PACKAGE}/{folder}', [str(path) for path in files if path.parent == folder])
        for folder in sorted({path.parent for path in files})
    ]


setup(
    name=PACKAGE,
    version='0.2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        *recordings(),
        (f'share/{PACKAGE}/fleet', sorted(glob('fleet/*'))),
        (f'share/{PACKAGE}/launch', sorted([*glob('*.launch.py'), *glob('*.launch.xml')])),
        (f'share/{PACKAGE}/layouts', sorted(glob('layouts/*'))),
        (f'share/{PACKAGE}/params', sorted(glob('params/*'))),
        (f'share/{PACKAGE}/recording', sorted(glob('recording/*'))),
        (f'share/{PACKAGE}/security', sorted(glob('security/*'))),
    ],
    python_requires='>=3.10',
    install_requires=[
        'numpy>=1.26',
        'PyYAML>=5.4',
        'rich>=13',
        'setuptools',
    ],
    extras_require={'test': ['pytest']},  # colcon test looks here
    zip_safe=False,
    maintainer='SAFE for ROS 2 maintainers',
    maintainer_email='maintainers@safe-ros.org',
    description='Launch files, parameter files and the demo of SAFE for ROS 2.',
    license='Apache-2.0',
    entry_points={'console_scripts': ['demo = safe_bringup.demo:main']},
)
