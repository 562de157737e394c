# SPDX-License-Identifier: Apache-2.0
"""Installs the package safe_training (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = 'safe_training'

# The function that fits each detector; Detector.fit finds it by these names.
FITTERS = {
    'density:fit_density': ['rnd', 'logpzo'],
    'embedding:fit_embedding': ['mahalanobis', 'euclidean_knn', 'cosine_knn', 'pca_kmeans'],
    'learned:fit_learned': ['safe_lstm', 'safe_mlp'],
    'probe:fit_probe': ['linear_probe'],
    'untrained:fit_control': ['clock', 'constant', 'random', 'action_norm'],
    'untrained:fit_stepwise': [
        'action_cluster_entropy',
        'action_general_var',
        'action_gripper_var',
        'action_rotation_var',
        'action_total_var',
        'action_translation_var',
        'signal',
        'stac',
        'stac_single',
        'token_avg_entropy',
        'token_avg_neg_log_prob',
        'token_max_entropy',
        'token_max_neg_log_prob',
    ],
}

setup(
    name=PACKAGE,
    version='0.2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={
        PACKAGE: [
            'definitions/*.msg',
            'py.typed',
            'reporting/page/template/*',
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
    description='Turns recorded rollouts into a calibrated failure detector.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': ['safe_training = safe_training.cli.main:main'],
        'safe_monitor_node.fitters': [
            f'{name} = safe_training.fitting.{function}'
            for function, names in FITTERS.items()
            for name in names
        ],
    },
)
