# SPDX-License-Identifier: Apache-2.0
"""Installs the package safe_monitor_node (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = 'safe_monitor_node'

setup(
    name=PACKAGE,
    version='0.2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['looking/web/*', 'py.typed', 'shipped/*/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
    ],
    python_requires='>=3.10',
    install_requires=[
        'ml_dtypes>=0.5',
        'numpy>=1.26',
        'safetensors>=0.4.5',
        'setuptools',
        'torch>=2.6',
    ],
    extras_require={'test': ['hypothesis', 'pytest']},  # colcon test looks here
    zip_safe=False,
    maintainer='SAFE for ROS 2 maintainers',
    maintainer_email='maintainers@safe-ros.org',
    description='Scores policy steps and raises failure alarms with a calibrated false-alarm rate.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'black_box = safe_monitor_node.nodes.black_box:main',
            'dashboard = safe_monitor_node.nodes.dashboard:main',
            'fleet = safe_monitor_node.nodes.fleet:main',
            'markers = safe_monitor_node.nodes.markers:main',
            'monitor = safe_monitor_node.nodes.monitor:main',
            'overlay = safe_monitor_node.nodes.overlay:main',
            'safe = safe_monitor_node.verbs.command:main',
            'watch = safe_monitor_node.nodes.watch:main',
        ],
        # ros2cli finds these where it is installed; a test compares them with verbs.live.VERBS.
        'ros2cli.command': ['safe = safe_monitor_node.verbs.command:SafeCommand'],
        'ros2safe.verb': [
            'doctor = safe_monitor_node.verbs.live:Doctor',
            'label = safe_monitor_node.verbs.live:Label',
            'load = safe_monitor_node.verbs.live:Load',
            'reset = safe_monitor_node.verbs.live:Reset',
            'status = safe_monitor_node.verbs.live:Status',
            'watch = safe_monitor_node.verbs.live:Watch',
        ],
    },
)
