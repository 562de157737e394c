# SPDX-License-Identifier: Apache-2.0
"""What labelled episodes taught a monitor, on disk, so that it outlives the process.

One JSON file with its own checksum. It belongs to one detector folder and one alpha, and is
written beside its place and renamed, so it is whole or absent.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_monitor_node.bands.adaptive_threshold import AdaptationError
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.storage.detector_folder import is_intact, sealed
from vla_feature_bridge.errors import SafeError

FORMAT = 'safe_adaptation'
VERSION = 1

_LARGEST_FILE = 64 << 20

_REMEDY = 'move the file away to start the adaptation anew'


class AdaptationFileError(SafeError):
    """A file of learned thresholds cannot be read or written; the message names it."""


class AdaptationFile:
    """The file of one monitor: read when it is there, written when something was learned.

    Parameters
    ----------
    path : path
    loaded : CalibratedDetector
        As it was read from its folder.
    adaptation : AdaptiveBand
        Its moving thresholds, which have learned nothing yet; they go on from what the file holds.

    Raises
    ------
    AdaptationFileError
        As :func:`read_adaptation`; or there is no file and none can be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], loaded: CalibratedDetector, adaptation: AdaptiveBand
    ) -> None:
        self.path = Path(path)
        self._loaded, self._adaptation = loaded, adaptation
        self._written = adaptation.revision
        if self.path.exists():
            read_adaptation(self.path, loaded, adaptation)
        else:
            write_adaptation(self.path, loaded, adaptation)

    def belongs_to(self, loaded: CalibratedDetector, adaptation: AdaptiveBand) -> bool:
        """Tell whether another monitor has the same detector folder and alpha."""
        same_alpha = adaptation.alpha == self._adaptation.alpha
        return loaded.weights_sha256 == self._loaded.weights_sha256 and same_alpha

    def keeps(self, adaptation: AdaptiveBand | None) -> bool:
        """Tell whether what these moving thresholds learn is what is written."""
        return adaptation is self._adaptation

    def start_anew(self, adaptation: AdaptiveBand) -> None:
        """Keep what other moving thresholds of the same detector learn, from now on."""
        self._adaptation, self._written = adaptation, -1

    def keep(self) -> None:
        """Write what was learned since the last time, if anything; else it costs nothing.

        Raises
        ------
        AdaptationFileError
            As :func:`write_adaptation`; the next call tries again.
        """
        if self._written == self._adaptation.revision:
            return
        write_adaptation(self.path, self._loaded, self._adaptation)
        self._written = self._adaptation.revision


def write_adaptation(
    path: str | os.PathLike[str], loaded: CalibratedDetector, adaptation: AdaptiveBand
) -> None:
    """Write what an adaptive band has learned; an earlier file is replaced.

    Raises
    ------
    AdaptationFileError
        It cannot be written; an earlier file is then as it was.
    """
    path = Path(path)
    text = sealed(
        {
            'format': FORMAT,
            'version': VERSION,
            'detector': loaded.detector.name,
            'weights_sha256': loaded.weights_sha256,
            'alpha': adaptation.alpha,
            'gamma': adaptation.gamma,
            'bands': adaptation.state(),
        }
    )
    scratch = path.with_name(f'.{path.name}.partial')
    try:
        with scratch.open('w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            # Robots lose power: without it the new name may be on disk before the content is.
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise AdaptationFileError(
            f'{path}: what was learned cannot be written ({error}); give an adaptation_file in an '
            'existing folder that the monitor may write to'
        ) from error


def read_adaptation(
    path: str | os.PathLike[str], loaded: CalibratedDetector, adaptation: AdaptiveBand
) -> None:
    """Go on from a file that `write_adaptation` wrote, in a band that has learned nothing yet.

    Raises
    ------
    AdaptationFileError
        The file is damaged, or belongs to another detector folder or another alpha. The band must
        then not be used.
    """
    path = Path(path)
    content = _checked_content(path)
    expected = {
        'weights_sha256': ('of the detector folder', loaded.weights_sha256),
        'alpha': ('of the monitor', adaptation.alpha),
    }
    for entry, (whose, value) in expected.items():
        if content.get(entry) != value:
            raise AdaptationFileError(
                f'{path}: expected the {entry} {whose}, {value}, found {content.get(entry)}; what '
                f'was learned under another one is of no use here, so {_REMEDY}'
            )
    try:
        adaptation.restore(content['bands'])
    except AdaptationError as error:
        raise AdaptationFileError(f'{path}: {error}; {_REMEDY}') from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AdaptationFileError(
            f'{path}: an entry is missing or of another type ({error!r}); {_REMEDY}'
        ) from error


def _checked_content(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _LARGEST_FILE else b''
    except OSError as error:
        raise AdaptationFileError(
            f'{path}: cannot be read ({error}); give another adaptation_file'
        ) from error
    if size > _LARGEST_FILE:
        raise AdaptationFileError(
            f'{path}: {size} bytes is too large for what a monitor learned; {_REMEDY}'
        )
    try:
        text = data.decode('utf-8')
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdaptationFileError(f'{path}: not readable as JSON ({error}); {_REMEDY}') from error
    found = content.get('format') if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        raise AdaptationFileError(
            f'{path}: expected format {FORMAT!r}, found {found!r}; give another adaptation_file'
        )
    if content.get('version') != VERSION:
        raise AdaptationFileError(
            f'{path}: expected version {VERSION}, found {content.get("version")!r}; '
            f'{_REMEDY}, or use the release that made it'
        )
    if not is_intact(content, text):
        raise AdaptationFileError(
            f'{path}: the checksum does not match its content, so the file was changed or damaged; '
            f'{_REMEDY}'
        )
    return content
