# SPDX-License-Identifier: Apache-2.0
"""The file that stores the effects of labels, so that they are kept after a restart.

The file contains the updates of adaptive thresholds, and the good runs of new tasks. It is JSON
with its own checksum. It belongs to one detector folder, and its updates belong to one alpha. It is
written completely or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_monitor_node.bands.adaptive_threshold import AdaptationError
from safe_monitor_node.bands.good_run_records import GoodRunRecords
from safe_monitor_node.bands.good_runs import GoodRunsError
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.storage.checksum import FileFormat, read_with_checksum, with_checksum
from vla_feature_bridge.atomic import replace_file
from vla_feature_bridge.errors import SafeError

_REMEDY = 'move the file away: the monitor then starts a new adaptation'


class AdaptationFileError(SafeError):
    """An adaptation file cannot be read or written; the message contains the name of the file."""


FORMAT = FileFormat(
    name='safe_adaptation',
    version=2,
    error=AdaptationFileError,
    repair=_REMEDY,
    renew=_REMEDY,
    other_format='give another adaptation_file',
    earlier=(1,),
)


class AdaptationFile:
    """The adaptation file of one monitor: read if it exists, written when a label changed it.

    Parameters
    ----------
    path : path
    calibrated : CalibratedDetector
        As it was read from its folder.
    adaptation : AdaptiveBand or None
        Adaptive band of this detector, not updated before. The updates in the file are applied to
        this band. None: the updates in the file are not changed.
    good_runs : GoodRunRecords, optional
        Good runs of this detector, without any counted run. The good runs in the file are added.
        Without this argument, the good runs in the file are not changed.

    Raises
    ------
    AdaptationFileError
        See :func:`read_adaptation`. Also raised if the file does not exist and cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        calibrated: CalibratedDetector,
        adaptation: AdaptiveBand | None,
        good_runs: GoodRunRecords | None = None,
    ) -> None:
        self.path = Path(path)
        self._calibrated, self._adaptation, self._good_runs = calibrated, adaptation, good_runs
        self._content: Mapping[str, Any] = {}
        if self.path.exists():
            self._content = read_adaptation(self.path, calibrated, adaptation, good_runs)
        else:
            self._write()
        self._written_revision: object = self._revision()

    def belongs_to(self, calibrated: CalibratedDetector, adaptation: AdaptiveBand | None) -> bool:
        """Return True if a monitor uses the detector folder and the alpha of this file."""
        same_alpha = _alpha_of(adaptation) == _alpha_of(self._adaptation)
        return calibrated.weights_sha256 == self._calibrated.weights_sha256 and same_alpha

    def keeps(
        self, adaptation: AdaptiveBand | None, good_runs: GoodRunRecords | None = None
    ) -> bool:
        """Return True if the updates of this band and these good runs are written to the file."""
        return adaptation is self._adaptation and good_runs is self._good_runs

    def start_anew(
        self, adaptation: AdaptiveBand | None, good_runs: GoodRunRecords | None = None
    ) -> None:
        """From now on, store the updates and good runs of another monitor of the same detector.

        The good runs in the file are kept: the other monitor counts them too. Otherwise they would
        be lost if a different detector was used in the meantime.
        """
        if self._good_runs is not None and good_runs is not None:
            good_runs.take_from(self._good_runs)
        elif self._good_runs is not None:
            self._content = {**self._content, 'good_runs': self._good_runs.state()}
        self._adaptation, self._good_runs = adaptation, good_runs
        self._written_revision = None

    def keep(self) -> None:
        """Write the file if something has changed since the last write; otherwise do nothing.

        Raises
        ------
        AdaptationFileError
            As :func:`write_adaptation`; the next call tries again.
        """
        revision = self._revision()
        if self._written_revision == revision:
            return
        self._write()
        self._written_revision = revision

    def _revision(self) -> tuple[int | None, int | None]:
        adaptation, good_runs = self._adaptation, self._good_runs
        return (
            None if adaptation is None else adaptation.revision,
            None if good_runs is None else good_runs.revision,
        )

    def _write(self) -> None:
        write_adaptation(
            self.path, self._calibrated, self._adaptation, self._good_runs, self._content
        )


def _alpha_of(adaptation: AdaptiveBand | None) -> float | None:
    return None if adaptation is None else adaptation.alpha


def write_adaptation(
    path: str | os.PathLike[str],
    calibrated: CalibratedDetector,
    adaptation: AdaptiveBand | None,
    good_runs: GoodRunRecords | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> None:
    """Write the updates of an adaptive band and the good runs; an earlier file is replaced.

    Parameters
    ----------
    path : path
    calibrated : CalibratedDetector
    adaptation : AdaptiveBand or None
    good_runs : GoodRunRecords, optional
    earlier : mapping, optional
        Content of the earlier file. Its updates are kept if ``adaptation`` is None, and its good
        runs if ``good_runs`` is None.

    Raises
    ------
    AdaptationFileError
        The file cannot be written; an earlier file is unchanged.
    """
    path = Path(path)
    before = earlier or {}
    content = {
        'format': FORMAT.name,
        'version': FORMAT.version,
        'detector': calibrated.detector.name,
        'weights_sha256': calibrated.weights_sha256,
        'alpha': before.get('alpha'),
        'gamma': before.get('gamma'),
        'bands': before.get('bands', []),
        'good_runs': before.get('good_runs', []),
    }
    if adaptation is not None:
        content |= {
            'alpha': adaptation.alpha,
            'gamma': adaptation.adaptation_step,
            'bands': adaptation.state(),
        }
    if good_runs is not None:
        content['good_runs'] = good_runs.state()
    text = with_checksum(content)
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
    path: str | os.PathLike[str],
    calibrated: CalibratedDetector,
    adaptation: AdaptiveBand | None,
    good_runs: GoodRunRecords | None = None,
) -> dict[str, Any]:
    """Apply a file of `write_adaptation` to a band and good runs that have no updates.

    Returns
    -------
    dict
        The content of the file.

    Raises
    ------
    AdaptationFileError
        The file is damaged, or belongs to another detector folder or another alpha. Do not use the
        band and the good runs after this error.
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
    _check_owner(path, content, calibrated, adaptation)
    try:
        if good_runs is not None:
            good_runs.restore(content.get('good_runs', []))
        if adaptation is not None:
            _restore(adaptation, good_runs, content)
    except (AdaptationError, GoodRunsError) as error:
        raise AdaptationFileError(f'{path}: {error}; {_REMEDY}') from error
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise AdaptationFileError(
            where=str(path),
            expected='the entries of an adaptation file',
            found=f'an entry that is missing or has the wrong type ({error!r})',
            advice=_REMEDY,
        ) from error
    return content


def _has_only_good_runs(content: Mapping[str, Any]) -> bool:
    return content.get('version') != 1 and content.get('alpha') is None


def _check_owner(
    path: Path,
    content: Mapping[str, Any],
    calibrated: CalibratedDetector,
    adaptation: AdaptiveBand | None,
) -> None:
    expected: dict[str, tuple[str, object]] = {
        'weights_sha256': ('of the detector folder', calibrated.weights_sha256)
    }
    # A file with only good runs does not belong to an alpha.
    if adaptation is not None and not _has_only_good_runs(content):
        expected['alpha'] = ('of the monitor', adaptation.alpha)
    for entry, (owner, value) in expected.items():
        if content.get(entry) != value:
            raise AdaptationFileError(
                where=str(path),
                expected=f'the {entry} {value} {owner}',
                found=f'the {entry} {content.get(entry)}',
                advice=f'the updates in this file belong to a different {entry}: {_REMEDY}',
            )


def _restore(
    adaptation: AdaptiveBand, good_runs: GoodRunRecords | None, content: Mapping[str, Any]
) -> None:
    """Restore the updates: of the bands of the folder, and of the bands from good runs."""
    if _has_only_good_runs(content):
        return
    if good_runs is not None:
        adaptation.take_learned(good_runs.bands)
    adaptation.restore(content['bands'])
