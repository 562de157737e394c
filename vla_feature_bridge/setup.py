# SPDX-License-Identifier: Apache-2.0
"""Installs the package vla_feature_bridge (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = 'vla_feature_bridge'

setup(
    name=PACKAGE,
    version='0.2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed', 'taps/presets/*.yaml']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
    ],
    python_requires='>=3.10',
    # The process of a policy needs no more than NumPy, and a tap PyTorch and PyYAML. The robot side
    # and training install what requirements/runtime.txt lists.
    install_requires=['numpy>=1.26'],
    extras_require={
        'rollout-set': ['ml_dtypes>=0.5', 'pyarrow>=17'],
        'taps': ['PyYAML>=6', 'torch>=2.2'],
        'test': ['hypothesis', 'pytest'],  # colcon test looks here
    },
    zip_safe=False,
    maintainer='SAFE for ROS 2 maintainers',
    maintainer_email='maintainers@safe-ros.org',
    description='Takes hidden states and action chunks out of a robot policy as policy steps.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'bridge = vla_feature_bridge.nodes.bridge:main',
            'relay = vla_feature_bridge.relays.main:main',
            'replay = vla_feature_bridge.nodes.replay:main',
        ]
    },
)
