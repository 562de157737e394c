# SPDX-License-Identifier: Apache-2.0
"""Makes the files of this folder with version 0.1 (commit 32e017b), and says what it reads in them.

Run it in the built environment of that commit, never with a later version::

    git worktree add --detach /tmp/v01 32e017b
    cd /tmp/v01 && ./dev exec python .../make_fixtures.py NEW_FOLDER

Everything is drawn from seeds. What differs between two runs: the Parquet results of sweeps and
evaluations (they hold how long fitting took) and the journal of the interrupted conversion (it
names its source by path and time). Paths inside the files are relative to the folder.

``expected.json`` holds what version 0.1 makes of every file, numbers to 7 significant digits. A
number that JSON does not know is the text "inf", "-inf" or "nan".
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from ruamel.yaml import YAML

from safe_monitor_node.adaptation_file import AdaptationFile
from safe_monitor_node.band import BandError
from safe_monitor_node.detectors import DETECTORS
from safe_monitor_node.episode_monitor import EpisodeMonitor, MonitorError, choose_thresholds
from safe_monitor_node.folder import load_detector, save_detector
from safe_training import conversion, sweep
from safe_training.cli import main as safe_training
from safe_training.protocol import Protocol, read_splits
from safe_training.readers import load_rollouts, open_source
from safe_training.results import read_results
from safe_training.sweep_grid import read_grid
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set import RolloutSet, RolloutSetWriter
from vla_feature_bridge.signals import rollout_signals

COMMIT = '32e017b'
VERSION = '0.1.0'
WIDTH = 8
SPEC = FeatureSpec('hidden_states', WIDTH, ('token',), (('token', 'last'),))
RAW = FeatureSpec('pre_logits', 4, ('token',))

# Task, successes, failures, whether its source sets it aside as unseen. Two tasks of many successes
# and two of few: per-task bands then come alone and shared.
TASKS = (
    ('open the drawer', 7, 2, False),
    ('put the cup on the plate', 7, 2, False),
    ('press the button', 4, 1, False),
    ('wipe the table, grün', 4, 1, False),
    ('close the lid', 2, 2, True),
)
# Half of a seen task's rollouts train; at alpha 0.2 a band needs 4 that are ranked.
SPLIT = ('--seed', '0', '--train-ratio', '0.4')
SMALL_NETWORK = ('hidden=4', 'epochs=4', 'learning_rate=0.01')
# One group: in groups of one channel the normalisation of a short sequence is ill-conditioned, and
# where the deepest level is a single value it is refused (0.1 then scores rollouts, not streams).
SMALL_UNET = ('down_dims=[8,8]', 'kernel_size=1', 'time_dim=4', 'groups=1', 'epochs=2')

# Folder -> detector, its parameters, further options of `fit`. Where it is not said, alpha is 0.2.
DETECTOR_FOLDERS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    # every registered detector, by its name
    **{
        name: (name, params, ())
        for name, params in {
            'clock': (),
            'constant': (),
            'random': ('seed=3',),
            'action_norm': (),
            'rnd': SMALL_UNET,
            'logpzo': (*SMALL_UNET, 'in_dim=4', 'success_only=true'),
            'mahalanobis': (),
            'euclidean_knn': ('neighbours=3',),
            'cosine_knn': ('neighbours=3', 'success_only=true', 'accumulate=none'),
            'pca_kmeans': ('pca_dim=3', 'clusters=3'),
            'safe_mlp': SMALL_NETWORK,
            'safe_lstm': SMALL_NETWORK,
            'linear_probe': ('components=4',),
            'action_total_var': (),
            'action_general_var': (),
            'action_translation_var': ('dimensions=[0,1]',),
            'action_rotation_var': ('reference_compatible=true',),
            'action_gripper_var': ('accumulate=sum',),
            'action_cluster_entropy': (),
            'stac': (),
            'stac_single': ('negate=true',),
            'signal': (),
            'token_max_neg_log_prob': (),
            'token_avg_neg_log_prob': ('accumulate=mean',),
            'token_max_entropy': (),
            'token_avg_entropy': (),
        }.items()
    },
    # other forms of some
    'safe_lstm_windowed': ('safe_lstm', (*SMALL_NETWORK, 'history=2', 'accumulate=mean'), ()),
    'safe_mlp_sum': (
        'safe_mlp',
        (*SMALL_NETWORK, 'layers=1', 'activation=none', 'accumulate=sum', 'threshold=5'),
        ('--stop-early',),
    ),
    'linear_probe_features': ('linear_probe', ('inputs=features', 'method=linear'), ()),
    'linear_probe_signals': ('linear_probe', ('inputs=signals', 'signals=["force"]'), ()),
    'linear_probe_distance': ('linear_probe', ('method=distance',), ()),
    'signal_by_name': ('signal', ('signal=force', 'accumulate=none'), ()),
    # every kind of band, on the detector with the smallest files
    'band_std': ('signal', (), ('--modulation', 'std')),
    'band_constant': ('signal', (), ('--modulation', 'constant')),
    'band_none': ('signal', (), ('--modulation', 'none')),
    'band_published': ('signal', (), ('--quantile', 'published')),
    'band_none_published': ('signal', (), ('--modulation', 'none', '--quantile', 'published')),
    'band_per_task': ('signal', (), ('--per-task', '--alpha', '0.3')),
    'band_none_per_task': ('signal', (), ('--modulation', 'none', '--per-task', '--alpha', '0.3')),
    'band_loto': ('mahalanobis', (), ('--calibration', 'loto')),
    'band_none_loto': ('mahalanobis', (), ('--modulation', 'none', '--calibration', 'loto')),
    'band_alpha_0.35': ('signal', (), ('--alpha', '0.35')),
    'band_infinite': ('signal', (), ('--alpha', '0.01')),
    'band_horizon': ('signal', (), ('--horizon', '9')),
    'band_saved_split': ('signal', (), ('--splits-from', 'splits/robust_flagged.json')),
}
UNCALIBRATED = 'uncalibrated'
WHOLE_INFO = ('band_per_task',)

GRID = """\
# SPDX-License-Identifier: Apache-2.0
benchmark: small
seeds: [0, 1]
unseen_ratio: 0.3
seen_train_ratio: 0.5
detectors:
  - name: clock
  - name: safe_mlp
    fixed: {hidden: 4, epochs: 3}
    grid: {learning_rate: [0.01, 0.001]}
"""
SWEEP = ('--precision', 'float32', '--alpha', '0.3')


def number(value: float) -> float | str:
    """Return a number for expected.json."""
    return float(f'{value:.7g}') if math.isfinite(value) else str(float(value))


def numbers(values: Iterable[float]) -> list[float | str]:
    """Return numbers for expected.json."""
    return [number(float(value)) for value in values]


def run(*arguments: str) -> str:
    """Run one verb and return what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = safe_training(list(arguments))
    assert status == 0, arguments
    return out.getvalue()


def run_json(*arguments: str) -> Any:
    """Run one verb with --json and return what it printed."""
    return json.loads(run(*arguments, '--json'))


# -- rollouts


def make_rollouts() -> list[Rollout]:
    """Draw rollouts in which failures drift, with everything that a rollout can hold."""
    rollouts = []
    for task_id, (task, successes, failures, unseen) in enumerate(TASKS):
        for index in range(successes + failures):
            rng = np.random.default_rng((task_id, index))
            failed = index >= successes
            steps = 6 if failed else int(rng.integers(3, 6))
            drift = np.linspace(0.0, 1.0, steps)[:, None] * (1.5 if failed else 0.2)
            features = rng.normal(size=(steps, WIDTH)) + 0.3 * task_id + drift
            spread = 0.1 + drift[:, :, None, None] / 2
            actions = 0.2 * np.arange(7) + spread * rng.normal(size=(steps, 2, 3, 7))
            actions = actions.astype(np.float16)
            probability = rng.uniform(0.5 if failed else 0.8, 1.0, size=(steps, 3))
            probability[0, 2] = np.nan
            rollouts.append(
                Rollout(
                    features=features.astype(np.float32),
                    task=task,
                    success=not failed,
                    episode_id=f'{"abcde"[task_id]}/{index}',
                    task_id=10 + task_id,
                    episode_index=index,
                    instruction=f'please {task}',
                    policy='a-vla',
                    feature_name=str(SPEC),
                    actions=actions,
                    exec_horizon=1,
                    token_probability=probability.astype(np.float32),
                    token_entropy=(-2.0 * np.log(probability)).astype(np.float32),
                    signals=rollout_signals(actions, 1)
                    | {'force': (drift[:, 0] + rng.random(steps)).astype(np.float32)},
                    stamps=1_700_000_000_000_000_000
                    + 10**10 * (20 * task_id + index)
                    + 100_000_007 * np.arange(steps),
                    inference_time=rng.uniform(0.01, 0.02, steps).astype(np.float32),
                    failure_step=2 if failed and index % 2 else None,
                    video=f'videos/{task_id}_{index}.mp4' if failed else '',
                    unseen=unseen,
                )
            )
    return rollouts


def make_plain_rollouts() -> list[Rollout]:
    """Draw rollouts of four tasks, none set aside, with features and nothing else."""
    rollouts = []
    for task_id in range(4):
        for index in range(6):
            rng = np.random.default_rng((100 + task_id, index))
            failed = index >= 4
            steps = 5 if failed else int(rng.integers(2, 5))
            drift = np.linspace(0.0, 1.0, steps)[:, None] * (1.5 if failed else 0.2)
            features = (rng.normal(size=(steps, WIDTH)) + 0.3 * task_id + drift).astype(np.float16)
            rollouts.append(
                Rollout(
                    features,
                    f't{task_id}',
                    not failed,
                    task_id=task_id,
                    episode_index=index,
                    feature_name=str(SPEC),
                )
            )
    return rollouts


def make_raw_rollouts() -> list[Rollout]:
    """Draw rollouts with raw bfloat16 features: of two tokens at each step, then of some."""
    rollouts = []
    for index in range(4):
        rng = np.random.default_rng((200, index))
        lengths = np.array([2, 3, 1]) if index % 2 else None
        features = rng.normal(size=(3, 3 if index % 2 else 2, 4))
        if lengths is not None:
            for row, length in zip(features, lengths, strict=True):
                row[length:] = 0.0
        rollouts.append(
            Rollout(
                features.astype(ml_dtypes.bfloat16),
                'raw',
                bool(index < 2),
                episode_index=index,
                feature_name=str(RAW),
                feature_lengths=lengths,
            )
        )
    return rollouts


def write_set(
    path: str, rollouts: Sequence[Rollout], feature: FeatureSpec = SPEC, **options: Any
) -> None:
    """Write a rollout set; its arrays may then be mapped."""
    with RolloutSetWriter(
        path, feature=feature, policy='a-vla', source='made up', **options
    ) as writer:
        for rollout in rollouts:
            writer.add(rollout)


def describe_rollout(rollout: Rollout) -> dict[str, Any]:
    """Return every scalar, and of each array dtype, shape and CRC-32 of its bytes."""
    arrays = {
        name: getattr(rollout, name)
        for name in (
            'features',
            'feature_lengths',
            'actions',
            'token_probability',
            'token_entropy',
            'stamps',
            'inference_time',
        )
    } | {f'signals.{name}': values for name, values in rollout.signals.items()}
    return {
        'task': rollout.task,
        'task_id': rollout.task_id,
        'episode_index': rollout.episode_index,
        'success': rollout.success,
        'instruction': rollout.instruction,
        'policy': rollout.policy,
        'feature_name': rollout.feature_name,
        'exec_horizon': rollout.exec_horizon,
        'failure_step': rollout.failure_step,
        'video': rollout.video,
        'unseen': rollout.unseen,
        'arrays': {
            name: f'{array.dtype} {"x".join(map(str, array.shape))} '
            f'{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}'
            for name, array in arrays.items()
            if array is not None
        },
    }


def describe_source(path: str) -> dict[str, Any]:
    """Return what `info` says of a source, and every rollout by its episode id."""
    rollouts, _ = load_rollouts(path)
    return {
        'info': run_json('info', path),
        'rollouts': {r.episode_id: describe_rollout(r) for r in rollouts},
    }


# -- interruptions


def stop_after(count: int) -> Callable[..., None]:
    """Return a progress function that interrupts, as Ctrl-C would, when so much is done."""

    def progress(done: int, *rest: Any) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


def interrupt_conversion() -> None:
    """Leave what `convert` leaves when it is interrupted after two of four episodes."""
    with contextlib.suppress(KeyboardInterrupt):
        conversion.convert(
            'sets/raw',
            'interrupted/converted',
            pooling=(('token', 'mean'),),
            jobs=1,
            progress=stop_after(2),
        )


def interrupt_named_work(rollouts: Sequence[Rollout]) -> None:
    """Leave the same of work whose name a test can know, so that it can go on with it."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        RolloutSetWriter(
            'interrupted/named', feature=SPEC, policy='a-vla', source='made up', work='fixture'
        ) as writer,
    ):
        writer.add(rollouts[0])
        writer.leave_out('episode b/0: made up to be left out')
        writer.add(rollouts[1])
        raise KeyboardInterrupt


def interrupt_sweep() -> None:
    """Leave what `sweep` leaves when it is interrupted after one of two units."""
    grid = read_grid('sweeps/grid.yaml')
    protocol = Protocol(
        unseen_ratio=grid.unseen_ratio, seen_train_ratio=grid.seen_train_ratio, alpha=0.3
    )
    settings = sweep.Settings(protocol, grid.benchmark, 'float32')

    def progress(done: int, *rest: Any) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        sweep.run_sweep(
            'sets/plain', grid, Path('sweeps/unfinished'), settings, 1, progress=progress
        )


# -- recordings


def sqlite_copy(bag: str, destination: str) -> None:
    """Copy a recording into sqlite3 storage, which 0.1 reads and does not write."""
    metadata = YAML(typ='safe').load(Path(bag, 'metadata.yaml'))
    information = metadata['rosbag2_bagfile_information']
    with (
        Reader(bag) as reader,
        Writer(destination, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer,
    ):
        topics = {
            c.id: writer.add_connection(
                c.topic,
                c.msgtype,
                msgdef=c.msgdef.data,
                rihs01=c.digest,
                offered_qos_profiles=c.ext.offered_qos_profiles,
            )
            for c in reader.connections
        }
        for connection, time, data in reader.messages():
            writer.write(topics[connection.id], time, data)
        for key, value in information['custom_data'].items():
            writer.set_custom_data(key, value)


# -- adaptation


def teach(folder: str, path: str, alpha: float, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Let a monitor judge rollouts and hear their outcomes, its file kept as the node keeps it."""
    loaded = load_detector(folder)
    monitor = EpisodeMonitor(loaded, alpha=alpha, adaptation_rate=0.05)
    assert monitor.adaptation is not None
    file = AdaptationFile(path, loaded, monitor.adaptation)
    lessons = {}
    for rollout in rollouts:
        monitor.start(rollout.episode_id, 0.0, rollout.task)
        for t in range(len(rollout)):
            assert monitor.step(rollout.step(t), 0.0) is not None
        monitor.end(rollout.episode_id)
        lessons[rollout.episode_id] = monitor.label(rollout.episode_id, rollout.success).name
        file.keep()
    lessons['a/1 again, unknown'] = monitor.label('a/1', None).name
    file.keep()
    return lessons


def describe_adaptation(folder: str, path: str, alpha: float) -> dict[str, Any]:
    """Return what a monitor that starts with the file goes on from."""
    loaded = load_detector(folder)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, 'adaptation.json')
        shutil.copy(path, copy)
        monitor = EpisodeMonitor(loaded, alpha=alpha, adaptation_rate=0.05)
        assert monitor.adaptation is not None
        AdaptationFile(copy, loaded, monitor.adaptation)
        bands = {}
        for task in monitor.adaptation.tasks:
            moving = monitor.adaptation.of(task)
            alarm, warning = monitor.adaptation.thresholds(task)
            bands[task] = {
                'level': number(moving.level),
                'successes': moving.successes,
                'false_alarms': moving.false_alarms,
                'observed': numbers(moving.observed),
                'alarm': numbers(alarm.upper),
                'warning': numbers(warning.upper),
            }
    return {'folder': folder, 'alpha': alpha, 'rate': 0.05, 'bands': bands}


# -- detectors


def make_detectors() -> None:
    """Fit every detector folder."""
    for folder, (name, params, options) in DETECTOR_FOLDERS.items():
        alpha = () if '--alpha' in options else ('--alpha', '0.2')
        split = ('--seed', '0') if '--splits-from' in options else SPLIT
        settings = [part for param in params for part in ('--set', param)]
        torch.manual_seed(0)
        run_json(
            'fit', 'sets/full', '--detector', name, '--out', f'detectors/{folder}',
            *settings, *split, *alpha, *options,
        )  # fmt: skip
    loaded = load_detector('detectors/signal')
    save_detector(
        f'detectors/{UNCALIBRATED}', loaded.detector, loaded.feature, provenance={'source': 'none'}
    )


def describe_detector(folder: str, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return what a folder says, how it scores, and each of its thresholds."""
    loaded = load_detector(folder)
    found = run_json('info', folder)
    del found['path']
    # All the rest stands in detector.json as it is printed; of one folder it is kept here too.
    if Path(folder).name not in WHOLE_INFO:
        del found['provenance']
        band = found.pop('band') or {}
        found |= {
            f'band.{name}': band.get(name)
            for name in ('steps', 'kind', 'n_calibration', 'n_center')
        }
    streamed = 0.0
    scores = {}
    for rollout in rollouts:
        batch = loaded.detector.score(rollout)
        stream = loaded.detector.stream()
        steps = [stream.step(rollout.step(t)) for t in range(len(rollout))]
        streamed = max(streamed, float(np.abs(batch - np.array(steps)).max()))
        scores[rollout.episode_id] = numbers(batch)
    assert streamed < 1e-5, folder
    described = {'info': found, 'scores': scores}
    if loaded.band is None:
        return described
    described['thresholds'] = {
        task: {
            f'{alpha:g}': numbers(loaded.band.at(alpha, task).upper)
            for alpha in loaded.band.alphas
            if loaded.band.at(alpha, task).task == task
        }
        for task in ('', *loaded.band.tasks)
    }
    described['first_alarms'] = {
        rollout.episode_id: loaded.band.at(loaded.alpha, rollout.task).first_crossing(
            loaded.detector.score(rollout)
        )
        for rollout in rollouts
    }
    try:
        alarm, warning = choose_thresholds(loaded)
        described['monitor'] = {'alarm': alarm.alpha, 'warning': warning.alpha}
    except (MonitorError, BandError) as error:
        described['monitor'] = {'refused': type(error).__name__}
    return described


# -- results and splits


def describe_splits(path: str, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return the episodes of each part of each split."""
    saved = read_splits(Path(path), rollouts)
    return {
        'scheme': saved.scheme,
        'splits': {
            str(seed): {
                'seen_tasks': list(split.seen_tasks),
                'unseen_tasks': list(split.unseen_tasks),
                **{
                    part: [rollouts[i].episode_id for i in members]
                    for part, members in split.parts.items()
                },
            }
            for seed, split in saved.splits.items()
        },
    }


def describe_results(folder: str) -> dict[str, Any]:
    """Return every result, without how long fitting took, and what `table` prints."""
    rows = [
        {
            'benchmark': r.benchmark,
            'protocol': r.protocol,
            'detector': r.detector,
            'params': r.params,
            'feature': r.feature,
            'seed': r.seed,
            'part': r.part,
            'values': {k: number(v) for k, v in r.values.items() if k != 'fit_seconds'},
        }
        for r in read_results(Path(folder))
    ]
    return {'rows': rows, 'table': run('table', folder)}


def continued_sweep(folder: str) -> dict[str, Any]:
    """Return what the same call says when it goes on with a copy of a results folder."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, 'copy')
        shutil.copytree(folder, copy)
        found = run_json(
            'sweep', 'sets/plain', '--grid', 'sweeps/grid.yaml', '--out', str(copy),
            '--splits', '1', *SWEEP,
        )  # fmt: skip
        del found['out']
        return found


def continued_conversions(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return what becomes of the interrupted work when it is begun again, on copies."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, 'interrupted')
        shutil.copytree('interrupted', copy)
        with RolloutSetWriter(
            copy / 'named', feature=SPEC, policy='a-vla', source='made up', work='fixture'
        ) as writer:
            continued, left_out = writer.continued, list(writer.left_out)
            writer.add(rollouts[2])
        named = RolloutSet.open(copy / 'named').episode_ids
        again = conversion.convert(
            'sets/raw', copy / 'converted', pooling=(('token', 'mean'),), jobs=1
        )
        shutil.rmtree(copy)
        shutil.copytree('interrupted', copy)
        other = conversion.convert(
            'sets/raw', copy / 'converted', pooling=(('token', 'last'),), jobs=1
        )
        assert sorted(p.name for p in copy.iterdir()) == ['.named.partial', 'converted']
    return {
        'named': {'continued': continued, 'left_out': left_out, 'episodes': named},
        # The name of the work holds paths, times and the version: elsewhere nothing is continued,
        # and the leftover is thrown away without a word, as it is here with another pooling.
        'converted': {'continued_here': again['continued'], 'rollouts': again['rollouts']},
        'converted otherwise': {'continued': other['continued'], 'rollouts': other['rollouts']},
    }


# -- all


def make(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Write every file into the working directory; returns what only writing tells."""
    write_set('sets/full', rollouts)
    write_set('sets/plain', make_plain_rollouts())
    write_set('sets/raw', make_raw_rollouts(), RAW)

    few = [r for r in rollouts if r.episode_id in ('a/0', 'a/8', 'd/1', 'e/3')]
    for rollout in few:
        if rollout.episode_id in ('a/8', 'd/1'):
            rollout.success, rollout.failure_step = None, None
    write_set('sets/labelled', few)
    run('convert', 'sets/labelled', 'bags/run.mcap')
    run('convert', 'sets/labelled', 'bags/run.bag', '--compression', 'zstd')
    sqlite_copy('bags/run.bag', 'bags/run_sqlite')
    recorded = describe_source('bags/run.mcap')
    assert describe_source('bags/run.bag')['rollouts'] == recorded['rollouts']
    assert describe_source('bags/run_sqlite')['rollouts'] == recorded['rollouts']
    for place in ('sets/labelled', 'bags/run.mcap', 'bags/run_sqlite'):
        run('label', place, '--episode', 'a/8', '--outcome', 'failure', '--failure-step', '3')
    Path('labels.csv').write_text(
        'episode_id,outcome,failure_step,note\nd/1,success,,seen by Ada\na/0,unknown,,\n'
    )
    run('label', 'sets/labelled', '--csv', 'labels.csv')
    run('label', 'bags/run.mcap', '--csv', 'labels.csv')

    Path('interrupted').mkdir()
    interrupt_conversion()
    interrupt_named_work(rollouts)

    Path('splits').mkdir()
    for name, source, options in (
        ('robust', 'sets/plain', ('--splits', '2')),
        ('paper', 'sets/plain', ('--protocol', 'paper')),
        ('loto', 'sets/plain', ('--protocol', 'loto')),
        ('robust_flagged', 'sets/full', ('--splits', '1', '--train-ratio', '0.4')),
    ):
        run(
            'evaluate', source, '--detector', 'clock', *options, '--alpha', '0.3',
            '--save-splits', f'splits/{name}.json', '--json',
        )  # fmt: skip

    make_detectors()
    taught = {
        'adaptation/signal.json': teach(
            'detectors/signal', make_parent('adaptation/signal.json'), 0.2, make_rollouts()
        ),
        'adaptation/per_task.json': teach(
            'detectors/band_per_task', 'adaptation/per_task.json', 0.3, make_rollouts()
        ),
    }

    Path('sweeps').mkdir()
    Path('sweeps/grid.yaml').write_text(GRID)
    run(
        'sweep', 'sets/plain', '--grid', 'sweeps/grid.yaml', '--out', 'sweeps/finished',
        '--splits', '1', *SWEEP, '--json',
    )  # fmt: skip
    interrupt_sweep()
    evaluated = run_json(
        'evaluate', 'sets/plain', '--detector', 'mahalanobis', '--protocol', 'paper',
        '--splits', '1', '--alpha', '0.3', '--out', 'sweeps/evaluated', '--benchmark', 'small',
    )  # fmt: skip
    Path('evaluate.json').write_text(json.dumps(evaluated, separators=(',', ':')) + '\n')
    return {'recorded': recorded, 'taught': taught}


def make_parent(path: str) -> str:
    """Make the folder of a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return path


def describe(made: dict[str, Any]) -> dict[str, Any]:
    """Return what 0.1 makes of everything in the working directory."""
    rollouts = list(RolloutSet.open('sets/full'))
    plain = list(RolloutSet.open('sets/plain'))
    folders = sorted(p.name for p in Path('detectors').iterdir())
    assert set(folders) == {*DETECTOR_FOLDERS, UNCALIBRATED}
    return {
        'commit': COMMIT,
        'versions': {
            name: version(name)
            for name in ('safe_training', 'numpy', 'torch', 'scikit-learn', 'pyarrow', 'rosbags')
        },
        'sources': {
            f'sets/{name}': describe_source(f'sets/{name}')
            for name in ('full', 'plain', 'raw', 'labelled')
        }
        | {
            f'bags/{name}': {'info': run_json('info', f'bags/{name}')}
            for name in ('run.mcap', 'run.bag', 'run_sqlite')
        },
        # The three recordings hold the same rollouts; csvs of labels add to two of them.
        'recorded_rollouts': made['recorded']['rollouts'],
        'labels': {
            place: run_json('label', place, '--list', '--all')
            for place in ('sets/labelled', 'bags/run.mcap', 'bags/run.bag', 'bags/run_sqlite')
        },
        'pooled_from_raw': {
            r.episode_id: describe_rollout(r)
            for r in open_source('sets/raw', pooling=(('token', 'mean'),)).rollouts()
        },
        'interrupted': continued_conversions(rollouts),
        'splits': {
            f'splits/{name}.json': describe_splits(f'splits/{name}.json', of)
            for name, of in (
                ('robust', plain), ('paper', plain), ('loto', plain), ('robust_flagged', rollouts),
            )
        }
        | {'sweeps/finished/splits.json': describe_splits('sweeps/finished/splits.json', plain)},
        'detectors': {name: describe_detector(f'detectors/{name}', rollouts) for name in folders},
        'adaptation': {
            path: {
                **describe_adaptation(
                    *(
                        ('detectors/band_per_task', path, 0.3)
                        if 'per_task' in path
                        else ('detectors/signal', path, 0.2)
                    )
                ),
                'lessons': lessons,
            }
            for path, lessons in made['taught'].items()
        },
        'results': {
            f'sweeps/{name}': describe_results(f'sweeps/{name}')
            for name in ('finished', 'evaluated')
        }
        # Its rows are those of one unit of the finished one.
        | {'sweeps/unfinished': {'table': run('table', 'sweeps/unfinished')}},
        'continued_sweeps': {
            f'sweeps/{name}': continued_sweep(f'sweeps/{name}')
            for name in ('finished', 'unfinished')
        },
    }  # fmt: skip


def main() -> None:
    """Make the folder that the command line names."""
    if version('safe_training') != VERSION:
        raise SystemExit(f'these files are made with version {VERSION} only ({COMMIT})')
    missing = sorted(set(DETECTORS) - {name for name, _, _ in DETECTOR_FOLDERS.values()})
    assert not missing, missing
    # How many threads share a sum changes its last digits.
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name in ('sets', 'bags', 'interrupted', 'splits', 'detectors', 'adaptation', 'sweeps'):
        shutil.rmtree(name, ignore_errors=True)
    expected = describe(make(make_rollouts()))
    text = json.dumps(expected, ensure_ascii=False, allow_nan=False, separators=(',', ':'))
    Path('expected.json').write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
