# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node with one way in and one way out.

``_setup`` at configure, ``_teardown`` for the rest.
"""

from __future__ import annotations

from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn


class ManagedNode(LifecycleNode):
    """Base of our lifecycle nodes.

    Configure fails loudly and leaves nothing behind; the node lives on.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.active = False
        self.failure = ''
        """Why the last configure failed; empty if it did not."""

    def _setup(self) -> None:
        """Make everything that the active node needs; raise with the reason if that cannot be."""
        raise AssertionError('each managed node has its set-up')

    def _teardown(self) -> None:
        """Destroy what ``_setup`` made, as far as it came; once at cleanup, shutdown or error."""
        raise AssertionError('each managed node has its teardown')

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._setup()
        except Exception as error:  # whatever it is, the node must say it and live on
            self.failure = str(error) or repr(error)
            self.get_logger().error(f'cannot configure: {self.failure}')
            self._teardown()
            return TransitionCallbackReturn.FAILURE
        self.failure = ''
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.active = True
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.active = False
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._leave()

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._leave()

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._leave()

    def _leave(self) -> TransitionCallbackReturn:
        self.active = False
        self._teardown()
        return TransitionCallbackReturn.SUCCESS
