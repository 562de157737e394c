# SPDX-License-Identifier: Apache-2.0
"""The base class of all errors of this suite: where, expected, found, advice."""

from __future__ import annotations


class SafeError(ValueError):
    """Base class of errors about invalid input. Every package has its own subclasses.

    The text is ``message``. Without ``message``, the text is made from the other arguments:
    ``where: expected X, found Y; advice``.

    Parameters
    ----------
    message : str
        The whole text; empty to use the other arguments.
    where : str
        File, topic, rollout or option.
    expected, found : str
        What was expected, and what was found.
    advice : str
        What to do.
    """

    def __init__(
        self,
        message: str = '',
        *,
        where: str = '',
        expected: str = '',
        found: str = '',
        advice: str = '',
    ) -> None:
        self.where, self.expected, self.found, self.advice = where, expected, found, advice
        if not message:
            facts = ', '.join(
                f'{word} {text}'
                for word, text in (('expected', expected), ('found', found))
                if text
            )
            message = f'{where}: {facts}' if where else facts
            message += f'; {advice}' if advice else ''
        super().__init__(message)
