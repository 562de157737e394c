# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node with one set-up function and one teardown function.

``_setup`` is called at configure. ``_teardown`` is called at cleanup, shutdown and error, and after
a failed configure.
"""

from __future__ import annotations

from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn


class ManagedNode(LifecycleNode):
    """Base of our lifecycle nodes.

    If configure fails, the node logs the reason, cleans up and keeps running.

    Attributes
    ----------
    active : bool
    failure : str
        Reason why the last configure failed; empty if it succeeded.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.active = False
        self.failure = ''
        self._refuse_impossible_requests()

    def _refuse_impossible_requests(self) -> None:
        """Answer ``success: false`` to a transition that the present state does not allow.

        In rclpy 7.1, such a request raises an error out of ``spin`` if it contains the id of the
        transition. The lifecycle manager of Nav2 sends ids.
        """
        service = self._service_change_state
        change_state = service.callback

        def answer(request: Any, response: Any) -> Any:
            try:
                return change_state(request, response)
            except RuntimeError as error:  # the base of RCLError, which has no public name
                name = request.transition.label or f'id {request.transition.id}'
                self.get_logger().error(f'transition {name} is refused: {error}')
                response.success = False
                return response

        service.callback = answer

    @property
    def finalized(self) -> bool:
        """Whether the node was shut down. This state has no transitions."""
        return str(self._state_machine.current_state[1]) == 'finalized'

    def _setup(self) -> None:
        """Make everything that the active node needs; raise with the reason if that fails."""
        raise AssertionError('a subclass must define _setup')

    def _teardown(self) -> None:
        """Destroy everything that ``_setup`` made, also if ``_setup`` failed."""
        raise AssertionError('a subclass must define _teardown')

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Set the node up."""
        try:
            self._setup()
        except Exception as error:  # Report every error; the node must keep running.
            self.failure = str(error) or repr(error)
            self.get_logger().error(f'cannot configure: {self.failure}')
            self._teardown()
            return TransitionCallbackReturn.FAILURE
        self.failure = ''
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to work."""
        self.active = True
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop working."""
        self.active = False
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear the node down."""
        return self._leave()

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear the node down."""
        return self._leave()

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear the node down."""
        return self._leave()

    def _leave(self) -> TransitionCallbackReturn:
        self.active = False
        self._teardown()
        return TransitionCallbackReturn.SUCCESS
