# SPDX-License-Identifier: Apache-2.0
"""Drives a headless Chromium through its debugging pipe, with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


def find_chromium() -> str | None:
    """Return the Chromium of this machine (``CHROMIUM`` names another), None if there is none."""
    named = os.environ.get('CHROMIUM')
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One page in one browser; close it when done."""

    def __init__(self, executable: str, profile: Path, size: tuple[int, int] = (1280, 900)) -> None:
        command_read, self._write = os.pipe()
        self._read, command_write = os.pipe()
        arguments = [
            executable,
            '--headless=new',
            '--no-sandbox',  # tests run as root in containers
            '--disable-gpu',
            '--disable-dev-shm-usage',
            '--no-first-run',
            '--hide-scrollbars',
            f'--user-data-dir={profile}',
            f'--window-size={size[0]},{size[1]}',
            '--remote-debugging-pipe',
            'about:blank',
        ]
        # The browser reads commands from descriptor 3 and answers on 4.
        self._process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{command_read} 4>&{command_write}', 'sh', *arguments],
            pass_fds=(command_read, command_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(command_write)
        self._number = 0
        self._buffer = b''
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call('Target.createTarget', url='about:blank')
        self._session = self.call(
            'Target.attachToTarget', targetId=target['targetId'], flatten=True
        )['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {'id': self._number, 'method': method, 'params': params}
        if self._session is not None:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        deadline = time.monotonic() + 60
        while True:
            answer = self._receive(deadline - time.monotonic())
            if answer.get('id') == self._number:
                assert 'error' not in answer, f'{method}: {answer["error"]}'
                return dict(answer['result'])
            self.events.append(answer)

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            assert ready, 'Chromium does not answer'
            chunk = os.read(self._read, 1 << 16)
            assert chunk, 'Chromium ended'
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b'\0')
        return dict(json.loads(message))

    def open(self, page: Path) -> None:
        """Open a file and wait until its script has run."""
        self.go(page.resolve().as_uri())

    def go(self, address: str) -> None:
        """Open an address and wait until the script of its page has run."""
        self.call('Page.navigate', url=address)
        self.wait('document.documentElement?.dataset.ready === "yes"')

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page."""
        result = self.call(
            'Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in result, result.get('exceptionDetails')
        return result['result'].get('value')

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        """Wait until a condition holds in the page."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f'Boolean({condition})'):
            assert time.monotonic() < deadline, f'never came true: {condition}'
            time.sleep(0.05)

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        """Press a key as a person does, such as ('ArrowDown', 40)."""
        for kind in ('rawKeyDown', 'keyUp'):
            self.call(
                'Input.dispatchKeyEvent',
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=8 if shift else 0,
            )

    def click(self, x: float, y: float) -> None:
        """Press and release the mouse at a place of the window."""
        self.drag([(x, y)])

    def drag(self, places: Sequence[tuple[float, float]]) -> None:
        """Press the mouse at the first place, move it through the others, and release it."""
        for index, (x, y) in enumerate(places):
            kind = 'mouseMoved' if index else 'mousePressed'
            self._mouse(kind, x, y, buttons=1)
        self._mouse('mouseReleased', *places[-1], buttons=0)

    def _mouse(self, kind: str, x: float, y: float, buttons: int) -> None:
        self.call(
            'Input.dispatchMouseEvent',
            type=kind,
            x=x,
            y=y,
            button='left',
            buttons=buttons,
            clickCount=1,
        )

    def look(self, width: int, height: int, scheme: str = 'light', scale: float = 1.0) -> None:
        """Have another window and another colour scheme: 'light' or 'dark'."""
        self.call(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        feature = {'name': 'prefers-color-scheme', 'value': scheme}
        self.call('Emulation.setEmulatedMedia', features=[feature])

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))

    def complaints(self) -> list[str]:
        """Return the errors that the page logged and the exceptions that it threw."""
        found = []
        for event in self.events:
            params = event.get('params', {})
            if event.get('method') == 'Runtime.exceptionThrown':
                found.append(str(params['exceptionDetails']))
            elif event.get('method') == 'Log.entryAdded' and params['entry']['level'] == 'error':
                found.append(str(params['entry']['text']))
        return found

    def requests(self) -> list[str]:
        """Return every address that the page asked for."""
        return [
            event['params']['request']['url']
            for event in self.events
            if event.get('method') == 'Network.requestWillBeSent'
        ]

    def close(self) -> None:
        """End the browser."""
        self._session = None
        try:
            self.call('Browser.close')
            self._process.wait(20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._write)
            os.close(self._read)
