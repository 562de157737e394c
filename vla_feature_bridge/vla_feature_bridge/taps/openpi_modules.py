# SPDX-License-Identifier: Apache-2.0
"""Modules of Flax that wrap a part of openpi's models, and copy its states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def tapped_head(inner: Any, note: Callable[[Any], None]) -> Any:
    """Return a module that notes its input, then calls ``inner``."""
    import jax
    from flax import nnx

    class TappedHead(nnx.Module):
        def __init__(self) -> None:
            self.inner = inner

        def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            jax.debug.callback(note, x, ordered=True)
            return self.inner(x, *args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return _of_inner(self, name)

    return TappedHead()


def tapped_language_model(inner: Any, note: Callable[[Any], None]) -> Any:
    """Return a module that notes the state of the last position of each decoding call."""
    import jax
    from flax import nnx

    class TappedLanguageModel(nnx.Module):
        def __init__(self) -> None:
            self.inner = inner

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = self.inner(*args, **kwargs)
            # Embedding a token and training have other results.
            more = result[2] if isinstance(result, tuple) and len(result) == 3 else None
            if isinstance(more, Mapping) and 'pre_logits' in more:
                jax.debug.callback(note, more['pre_logits'][:, -1], ordered=True)
            return result

        def __getattr__(self, name: str) -> Any:
            return _of_inner(self, name)

    return TappedLanguageModel()


def _of_inner(module: Any, name: str) -> Any:
    """Return an attribute of the module that was replaced, such as ``llm.module``."""
    inner = vars(module).get('inner')
    if inner is None or name.startswith('__'):
        raise AttributeError(name)
    return getattr(inner, name)
