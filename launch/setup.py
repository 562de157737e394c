# SPDX-License-Identifier: Apache-2.0
"""Installs the package safe_bringup (ament_python)."""

from glob import glob

from setuptools import find_packages, setup

PACKAGE = 'safe_bringup'

setup(
    name=PACKAGE,
    version='0.2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        (f'share/{PACKAGE}/fleet', sorted(glob('fleet/*'))),
        (f'share/{PACKAGE}/launch', sorted(glob('*.launch.py'))),
        (f'share/{PACKAGE}/layouts', sorted(glob('layouts/*'))),
        (f'share/{PACKAGE}/params', sorted(glob('params/*'))),
        (f'share/{PACKAGE}/security', sorted(glob('security/*'))),
    ],
    python_requires='>=3.10',
    install_requires=[
        'numpy>=1.26',
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
