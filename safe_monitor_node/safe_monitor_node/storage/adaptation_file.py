# SPDX-License-Identifier: Apache-2.0
"""The file that stores the updates of adaptive thresholds, so that a restart keeps the updates.

The file is JSON with its own checksum. It belongs to one detector folder and one alpha. It is
written completely or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_monitor_node.bands.adaptive_threshold import AdaptationError
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.storage.checksum import FileFormat, read_with_checksum, with_checksum
from vla_feature_bridge.atomic import replace_file
from vla_feature_bridge.errors import SafeError

_REMEDY = 'move the file away: the monitor then starts a new adaptation'


class AdaptationFileError(SafeError):
    """An adaptation file cannot be read or written; the message contains the name of the file."""


FORMAT = FileFormat(
    name='safe_adaptation',
    version=1,
    error=AdaptationFileError,
    repair=_REMEDY,
    renew=_REMEDY,
    other_format='give another adaptation_file',
)


class AdaptationFile:
    """The adaptation file of one monitor: read if it exists, written when a label changed the band.

    Parameters
    ----------
    path : path
    calibrated : CalibratedDetector
        As it was read from its folder.
    adaptation : AdaptiveBand
        Adaptive band of this detector, not updated before. The updates in the file are applied to
        this band.

    Raises
    ------
    AdaptationFileError
        See :func:`read_adaptation`. Also raised if the file does not exist and cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        calibrated: CalibratedDetector,
        adaptation: AdaptiveBand,
    ) -> None:
        self.path = Path(path)
        self._calibrated, self._adaptation = calibrated, adaptation
        self._written_revision = adaptation.revision
        if self.path.exists():
            read_adaptation(self.path, calibrated, adaptation)
        else:
            write_adaptation(self.path, calibrated, adaptation)

    def belongs_to(self, calibrated: CalibratedDetector, adaptation: AdaptiveBand) -> bool:
        """Return True if a monitor uses the detector folder and the alpha of this file."""
        same_alpha = adaptation.alpha == self._adaptation.alpha
        return calibrated.weights_sha256 == self._calibrated.weights_sha256 and same_alpha

    def keeps(self, adaptation: AdaptiveBand | None) -> bool:
        """Return True if the updates of this band are written to the file."""
        return adaptation is self._adaptation

    def start_anew(self, adaptation: AdaptiveBand) -> None:
        """From now on, store the updates of this other band of the same detector."""
        self._adaptation, self._written_revision = adaptation, -1

    def keep(self) -> None:
        """Write the file if the band has changed since the last write; otherwise do nothing.

        Raises
        ------
        AdaptationFileError
            As :func:`write_adaptation`; the next call tries again.
        """
        if self._written_revision == self._adaptation.revision:
            return
        write_adaptation(self.path, self._calibrated, self._adaptation)
        self._written_revision = self._adaptation.revision


def write_adaptation(
    path: str | os.PathLike[str], calibrated: CalibratedDetector, adaptation: AdaptiveBand
) -> None:
    """Write the updates of an adaptive band; an earlier file is replaced.

    Raises
    ------
    AdaptationFileError
        The file cannot be written; an earlier file is unchanged.
    """
    path = Path(path)
    text = with_checksum(
        {
            'format': FORMAT.name,
            'version': FORMAT.version,
            'detector': calibrated.detector.name,
            'weights_sha256': calibrated.weights_sha256,
            'alpha': adaptation.alpha,
            'gamma': adaptation.adaptation_step,
            'bands': adaptation.state(),
        }
    )
    try:
        # Do not create folders: the path can contain a typing error.
        path.parent.resolve(strict=True)
        replace_file(path, text)
    except OSError as error:
        raise AdaptationFileError(
            where=str(path),
            expected='a file to which the updates of the thresholds can be written',
            found=f'a file that cannot be written ({error})',
            advice='give an adaptation_file in an existing folder in which the monitor may write',
        ) from error


def read_adaptation(
    path: str | os.PathLike[str], calibrated: CalibratedDetector, adaptation: AdaptiveBand
) -> None:
    """Apply the updates in a file of `write_adaptation` to a band without any update yet.

    Raises
    ------
    AdaptationFileError
        The file is damaged, or belongs to another detector folder or another alpha. Do not use the
        band after this error.
    """
    path = Path(path)
    try:
        content = read_with_checksum(path, FORMAT)
    except OSError as error:
        raise AdaptationFileError(
            where=str(path),
            expected='an adaptation file',
            found=f'a file that cannot be read ({error})',
            advice='give another adaptation_file',
        ) from error
    expected = {
        'weights_sha256': ('of the detector folder', calibrated.weights_sha256),
        'alpha': ('of the monitor', adaptation.alpha),
    }
    for entry, (owner, value) in expected.items():
        if content.get(entry) != value:
            raise AdaptationFileError(
                where=str(path),
                expected=f'the {entry} {value} {owner}',
                found=f'the {entry} {content.get(entry)}',
                advice=f'the updates in this file belong to a different {entry}: {_REMEDY}',
            )
    try:
        adaptation.restore(content['bands'])
    except AdaptationError as error:
        raise AdaptationFileError(f'{path}: {error}; {_REMEDY}') from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AdaptationFileError(
            where=str(path),
            expected='the entries of an adaptation file',
            found=f'an entry that is missing or has the wrong type ({error!r})',
            advice=_REMEDY,
        ) from error
