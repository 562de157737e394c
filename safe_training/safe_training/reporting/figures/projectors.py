# SPDX-License-Identifier: Apache-2.0
"""Names of the projections of the feature map, for whoever does not draw."""

PROJECTORS = ('pca', 'tsne', 'umap')
