# SPDX-License-Identifier: Apache-2.0
"""Names of the projections of the feature map; importing them draws nothing."""

PROJECTORS = {'pca': 'PCA', 'tsne': 't-SNE', 'umap': 'UMAP'}
"""Names of options, and display names of the projections."""
