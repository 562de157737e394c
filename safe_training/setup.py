# SPDX-License-Identifier: Apache-2.0
"""Installs the package safe_training (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = 'safe_training'

setup(
    name=PACKAGE,
    version='0.1.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['definitions/*.msg', 'grids/*.yaml', 'py.typed', 'report_page/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
    ],
    python_requires='>=3.10',
    install_requires=[
        'backports.zstd>=1.0',
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
        'umap': ['umap-learn>=0.5'],
        'vision': ['opencv-python-headless>=4.5,<5'],
    },
    tests_require=['pytest'],
    zip_safe=False,
    maintainer='SAFE for ROS 2 maintainers',
    maintainer_email='maintainers@safe-ros.org',
    description='Turns recorded rollouts into a calibrated failure detector.',
    license='Apache-2.0',
    entry_points={'console_scripts': ['safe_training = safe_training.cli:main']},
)
