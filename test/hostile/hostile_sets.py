# SPDX-License-Identifier: Apache-2.0
"""Hostile rollout sets and detector folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from hostile_cases import Bad, Good, cases
from hostile_pickles import PICKLES

# -- rollout sets


def changed_set(folder: Path, good: Good, change: Callable[[Path], str]) -> Bad:
    shutil.copytree(good.set, folder / 'set')
    return Bad(folder / 'set', change(folder / 'set'))


def _replace(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    def apply(path: Path) -> str:
        file = path / name
        data = change(file.read_bytes())
        file.unlink()
        file.write_bytes(data)
        return Path(name).name

    return apply


def _column(name: str, value: object) -> Callable[[Path], str]:
    def apply(path: Path) -> str:
        import pyarrow
        import pyarrow.parquet

        file = path / 'rollouts.parquet'
        table = pyarrow.parquet.read_table(file)
        values = [value, *table.column(name).to_pylist()[1:]]
        place = table.column_names.index(name)
        pyarrow.parquet.write_table(table.set_column(place, name, pyarrow.array(values)), file)
        return 'arrays' if name == 'arrays_bytes' else 'rollouts.parquet'

    return apply


def _header(**changes: object) -> Callable[[Path], str]:
    """Rewrite the header of a safetensors file, and the index so that it fits."""

    def apply(path: Path) -> str:
        import zlib

        file = path / 'arrays' / '000000.safetensors'
        data = file.read_bytes()
        length = int.from_bytes(data[:8], 'little')
        header = json.loads(data[8 : 8 + length])
        header['features'] |= changes
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length :])
        _column('arrays_bytes', file.stat().st_size)(path)
        _column('arrays_header_crc32', zlib.crc32(text))(path)
        return '000000.safetensors'

    return apply


_MANIFEST, _INDEX, _ARRAYS = 'rollout_set.json', 'rollouts.parquet', 'arrays/000000.safetensors'
cases(
    changed_set,
    manifest_empty=_replace(_MANIFEST, lambda data: b''),
    manifest_cut=_replace(_MANIFEST, lambda data: data[: len(data) // 2]),
    manifest_deep=_replace(_MANIFEST, lambda data: b'[' * 100_000),
    manifest_pickle=_replace(_MANIFEST, lambda data: PICKLES['system_0']()),
    manifest_long_number=_replace(_MANIFEST, lambda data: b'1' * 100_000),
    index_empty=_replace(_INDEX, lambda data: b''),
    index_cut=_replace(_INDEX, lambda data: data[: len(data) // 2]),
    index_pickle=_replace(_INDEX, lambda data: PICKLES['system_5']()),
    index_footer_lies=_replace(_INDEX, lambda data: data[:-8] + b'\xff\xff\xff\x7fPAR1'),
    path_leads_out=_column('arrays', '../../../etc/passwd'),
    path_is_absolute=_column('arrays', '/etc/passwd'),
    arrays_empty=_replace(_ARRAYS, lambda data: b''),
    arrays_cut=_replace(_ARRAYS, lambda data: data[: len(data) // 2]),
    header_length_lies=_replace(_ARRAYS, lambda data: b'\xff' * 7 + b'\x7f' + data[8:]),
    shape_lies=_header(shape=[10**12, 4]),
    shape_negative=_header(shape=[-1, -4]),
    offsets_lead_out=_header(data_offsets=[0, 10**15]),
    offsets_negative=_header(data_offsets=[-64, 0]),
    dtype_object=_header(dtype='O'),
)


# -- detector folders


def changed_detector(folder: Path, good: Good, change: Callable[[Path], str]) -> Bad:
    shutil.copytree(good.detector, folder / 'detector')
    return Bad(folder / 'detector', change(folder / 'detector'), 'info')


_WEIGHTS = 'weights.safetensors'
cases(
    changed_detector,
    json_cut=_replace('detector.json', lambda data: data[: len(data) // 2]),
    json_deep=_replace('detector.json', lambda data: b'{"a":' * 100_000),
    json_pickle=_replace('detector.json', lambda data: PICKLES['system_0']()),
    weights_pickle=_replace(_WEIGHTS, lambda data: PICKLES['system_5']()),
    weights_cut=_replace(_WEIGHTS, lambda data: data[: len(data) // 2]),
    weights_length=_replace(_WEIGHTS, lambda data: b'\xff' * 7 + b'\x7f' + data[8:]),
)
