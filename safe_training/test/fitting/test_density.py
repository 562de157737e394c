# SPDX-License-Identifier: Apache-2.0
"""RND and LogpZO against the published vectors, and where they do otherwise than published."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from live_scores import streamed
from rollout_factory import make_rollout
from shared_files import assert_golden, golden_arrays

import safe_training  # noqa: F401  (registers the fitters)
from safe_monitor_node.detectors import DetectorError, StepError, make_detector
from safe_monitor_node.detectors.density import FINAL_GROUPS, as_sequence, real_entries
from safe_monitor_node.detectors.unet import sinusoidal_embedding, smallest_group
from safe_training.fitting.density import batch_loss, flow_matching_loss
from safe_training.fitting.losses import sum_of_squares

GOLDEN = golden_arrays('rnd_logpzo')
TOLERANCE = 1e-4
CONFIG = json.loads(str(GOLDEN['rnd/in/unet_config']))
UNET = {
    'down_dims': CONFIG['down_dims'],
    'kernel_size': CONFIG['kernel_size'],
    'groups': CONFIG['n_groups'],
    'time_dim': CONFIG['diffusion_step_embed_dim'],
}
TINY = {'down_dims': [8, 8], 'kernel_size': 3, 'groups': 4, 'time_dim': 4, 'epochs': 2}
OUR_NAMES = {
    'predictor_': '',
    'net_succ': 'success',
    'net_fail': 'failure',
    'diffusion_step_encoder|1': 'time.0',
    'diffusion_step_encoder|3': 'time.2',
    'mid_modules': 'middle',
    '_modules': '',
    'blocks|0|block': 'first',
    'blocks|1|block': 'second',
    'cond_encoder|1': 'condition',
    'residual_conv': 'skip',
    '|conv|': '.',
    'final_conv|0|block': 'final.0',
    'final_conv': 'final',
    '|': '.',
}


close = partial(assert_golden, tolerance=TOLERANCE)


def golden(key):
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def golden_weights(case):
    weights = {}
    for key in GOLDEN:
        prefix, _, name = key.partition('/weights/')
        if prefix == case and name:
            for theirs, ours in OUR_NAMES.items():
                name = name.replace(theirs, ours)
            weights[name] = GOLDEN[key].astype(np.float32)
    return weights


def golden_rnd(**params):
    detector = make_detector('rnd', **UNET, **params)
    state = golden_weights('rnd')
    if detector.success_only:
        state = {name: a for name, a in state.items() if not name.startswith('failure')}
    detector.load_state({**state, 'action_shape': np.array([3, 3])}, 6)
    return detector


def golden_logpzo(**params):
    detector = make_detector('logpzo', in_dim=int(GOLDEN['logpzo/in/in_dim']), **UNET, **params)
    state = golden_weights('logpzo')
    if detector.success_only:
        state = {name: a for name, a in state.items() if not name.startswith('failure')}
    detector.load_state(state, 6)
    return detector


def rollouts_of(features, chunks=None):
    return [
        make_rollout(i, features=f, actions=None if chunks is None else chunks[i])
        for i, f in enumerate(features)
    ]


RND_ROLLOUTS = rollouts_of(
    GOLDEN['rnd/in/features'], GOLDEN['rnd/in/action_vectors'].reshape(3, 4, 1, 3, 3)
)
RND_INPUTS = (
    golden('rnd/in/features').flatten(0, 1),
    golden('rnd/in/action_vectors').reshape(12, 3, 3),
)
LOGPZO_ROLLOUTS = rollouts_of(GOLDEN['logpzo/in/features'])


# --- the published vectors


def test_golden_time_embedding():
    close(sinusoidal_embedding(golden('logpzo/in/unet_t'), 8), GOLDEN['logpzo/out/pos_emb8'])


def test_golden_unet():
    network = golden_logpzo().networks_['success']
    found = network(golden('logpzo/in/unet_x'), golden('logpzo/in/unet_t'))
    close(found, GOLDEN['logpzo/out/unet_out'])


def test_golden_rnd_input():
    chunks = golden('rnd/in/action_vectors')[0]
    close(as_sequence(chunks, 3, 4), GOLDEN['rnd/out/adjusted_action0'])


def test_golden_rnd_scores():
    detector = golden_rnd(reference_compatible=True)
    for rollout, expected in zip(RND_ROLLOUTS, GOLDEN['rnd/out/scores'], strict=True):
        close(detector.score(rollout), expected)
        close(streamed(detector, rollout), expected)
    alone = golden_rnd(reference_compatible=True, success_only=True)
    for rollout, expected in zip(RND_ROLLOUTS, GOLDEN['rnd/out/err_succ'], strict=True):
        close(alone.score(rollout), expected)


def test_golden_rnd_errors_of_each_imitator():
    detector = golden_rnd(reference_compatible=True)
    for outcome, name in (('success', 'err_succ'), ('failure', 'err_fail')):
        errors = detector.nonconformity(outcome, RND_INPUTS)
        close(errors.reshape(3, 4), GOLDEN[f'rnd/out/{name}'])


def test_golden_rnd_loss_counts_padded_steps_as_zeros_and_ours_leaves_them_out():
    detector = golden_rnd(reference_compatible=True)
    valid, failed = golden('rnd/in/valid_masks') > 0, golden('rnd/in/success_labels') == 0
    of_step = failed[:, None].expand(valid.shape)
    errors = [detector.nonconformity(o, RND_INPUTS).reshape(3, 4) for o in ('success', 'failure')]
    ours, published = 0.0, 0.0
    for error, members, name in zip(
        errors, (~of_step, of_step), ('success_loss', 'fail_loss'), strict=True
    ):
        padded = (error * valid)[members].mean()
        close(padded, GOLDEN[f'rnd/out/{name}'])
        published += padded
        ours += error[valid & members].mean()
    close(published, GOLDEN['rnd/out/loss'])
    steps = valid.flatten()
    inputs = tuple(tensor[steps] for tensor in RND_INPUTS)
    loss = batch_loss(
        detector, detector.networks_, inputs, of_step[valid].flatten(), torch.Generator()
    )
    close(loss, ours.item())
    assert abs(float(loss) - float(published)) > 0.1


@pytest.mark.parametrize('success_only', [False, True])
def test_golden_logpzo_scores(success_only):
    detector = golden_logpzo(reference_compatible=True, success_only=success_only)
    name = 'scores_success_only' if success_only else 'scores'
    for rollout, expected in zip(LOGPZO_ROLLOUTS, GOLDEN[f'logpzo/out/{name}'], strict=True):
        close(detector.score(rollout), expected)
        close(streamed(detector, rollout), expected)


def test_golden_flow_matching_loss():
    network = golden_logpzo().networks_['success']
    x0, noise, time = (golden(f'logpzo/in/{n}') for n in ('fm_x0', 'fm_noise_x1', 'fm_t'))
    everything = torch.ones(x0.shape[1:], dtype=torch.bool)
    close(flow_matching_loss(network, x0, noise, time, everything), GOLDEN['logpzo/out/fm_loss'])


# --- otherwise than published


def test_padding_of_the_features_neither_scores_nor_trains():
    # 6 features in rows of 4, a multiple of 4 rows: 10 of 16 entries are padding (D4).
    real = real_entries(6, 4, 4)
    assert real.shape == (4, 4)
    assert real.sum() == 6
    detector, published = golden_logpzo(), golden_logpzo(reference_compatible=True)
    features = golden('logpzo/in/features')[0]
    x = detector.sequence(features)
    latent = x + detector.networks_['success'](x, torch.zeros(4))
    expected = latent.square()[:, real].sum(dim=1) / 6
    close(detector.nonconformity('success', (features,)), expected.detach().numpy())
    assert (published.nonconformity('success', (features,)) > 6 * expected).all()

    generator = torch.Generator().manual_seed(0)
    noise, time = torch.randn(x.shape, generator=generator), torch.rand(4, generator=generator)
    loss = flow_matching_loss(detector.networks_['success'], x, noise, time, real)
    elsewhere = torch.where(real, noise, 1e6)
    again = flow_matching_loss(detector.networks_['success'], x, elsewhere, time, real)
    assert loss == again, 'noise in the padding is never seen'


def test_padding_of_a_chunk_does_not_score():
    detector, published = golden_rnd(), golden_rnd(reference_compatible=True)
    networks = detector.networks_
    features, chunks = RND_INPUTS
    x, time = as_sequence(chunks.flatten(1), 3, 4), torch.zeros(12)
    difference = networks['success'](x, time, features) - networks['target'](x, time, features)
    distances = torch.linalg.vector_norm(difference + 1e-6, dim=-1)
    close(
        detector.nonconformity('success', RND_INPUTS), distances[:, :3].mean(dim=1).detach().numpy()
    )
    close(published.nonconformity('success', RND_INPUTS), distances.mean(dim=1).detach().numpy())


def rollouts_with_actions(count=8, dim=6, horizon=5, seed=0):
    rng = np.random.default_rng(seed)
    return [
        make_rollout(
            i,
            features=rng.normal(size=(length, dim)).astype(np.float32),
            actions=rng.normal(size=(length, 2, horizon, 7)).astype(np.float32),
        )
        for i, length in enumerate(rng.integers(3, 7, count).tolist())
    ]


def test_the_actions_of_every_rollout_reach_the_network():
    # Published, all rollouts but the last were trained and scored on zeros (D1).
    rollouts = rollouts_with_actions()
    detector = make_detector('rnd', **TINY).fit(rollouts)
    for rollout in rollouts:
        still = dataclasses.replace(rollout, actions=np.zeros_like(rollout.actions))
        assert (detector.score(rollout) != detector.score(still)).all()
    others = list(rollouts)
    others[0] = dataclasses.replace(rollouts[0], actions=2 * rollouts[0].actions)
    refitted = make_detector('rnd', **TINY).fit(others)
    assert (refitted.score(rollouts[3]) != detector.score(rollouts[3])).any()


def test_only_the_executed_chunk_counts():
    rollout = rollouts_with_actions()[0]
    detector = make_detector('rnd', **TINY).fit(rollouts_with_actions())
    alone = dataclasses.replace(rollout, actions=rollout.actions[:, :1])
    np.testing.assert_array_equal(detector.score(alone), detector.score(rollout))


@pytest.mark.parametrize('name', ['rnd', 'logpzo'])
def test_batches_of_one_outcome_train_its_network_alone(name):
    # Published: NaN for RND, an exception for LogpZO (D3, D4).
    rollouts = rollouts_with_actions()
    losses = []
    detector = make_detector(name, **TINY, batch_size=1)
    detector.fit(rollouts, progress=lambda done, total, note: losses.append(float(note.split()[1])))
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert np.isfinite(detector.score(rollouts[0])).all()
    only = make_detector(name, **TINY, batch_size=1, success_only=True).fit(rollouts)
    assert np.isfinite(only.score(rollouts[1])).all()


def test_neither_training_nor_the_penalty_changes_the_target():
    targets, penalties = [], []
    for params in ({'lambda_reg': 0.0, 'epochs': 1}, {'lambda_reg': 100.0, 'epochs': 30}):
        params = {**TINY, **params, 'learning_rate': 1e-2}
        detector = make_detector('rnd', **params).fit(rollouts_with_actions())
        targets.append({k: v for k, v in detector.state().items() if k.startswith('target')})
        penalties.append(float(sum_of_squares(detector.networks_['success'])))
    for name in targets[0]:
        np.testing.assert_array_equal(targets[0][name], targets[1][name])
    assert penalties[1] < 0.5 * penalties[0]


@pytest.mark.parametrize(('name', 'rate'), [('rnd', 1e-2), ('logpzo', 1e-2)])
def test_training_makes_successes_familiar(name, rate):
    rng = np.random.default_rng(1)
    rollouts = rollouts_with_actions(16, seed=1)
    places = {False: rng.normal(size=6), True: rng.normal(size=6)}
    for rollout in rollouts:
        rollout.features = (places[rollout.failed] + 0.1 * rollout.features).astype(np.float32)
    params = {**TINY, 'epochs': 50, 'learning_rate': rate, 'batch_size': 16}
    detector = make_detector(name, **params).fit(rollouts[:10])
    scores = {fails: [] for fails in (False, True)}
    for rollout in rollouts[10:]:
        scores[rollout.failed].append(detector.score(rollout).mean())
    assert max(scores[False]) < min(scores[True])


# --- groups of the normalisation with few values


def density_of(name, dim, horizon, seed=0, **params):
    detector = make_detector(name, **{**TINY, **params})
    detector.check_params()
    if name == 'rnd':
        detector.action_shape_ = (horizon, 7)
    torch.manual_seed(seed)
    detector.set_networks(detector.build(dim), dim)
    return detector


@pytest.mark.parametrize('name', ['rnd', 'logpzo'])
@pytest.mark.parametrize(
    ('widths', 'groups', 'length'),
    [
        ([8, 8], 8, 4),
        ([8, 8], 1, 2),
        ([16, 8], 2, 6),
        ([8, 16], 8, 4),
        ([8, 16, 32], 4, 4),
        ([32, 16, 64], 8, 12),
        ([8, 64], 1, 16),
    ],
)
def test_the_smallest_group_is_the_smallest_that_is_normalised(name, widths, groups, length):
    dim = 4 * length if name == 'logpzo' else 6
    own = {'in_dim': 4} if name == 'logpzo' else {}
    detector = density_of(name, dim, length, down_dims=widths, groups=groups, **own)
    sizes = []

    def note(module, inputs):
        sizes.append(inputs[0][0].numel() // module.num_groups)

    for module in detector.scoring_.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_pre_hook(note)
    (rollout,) = rollouts_with_actions(1, dim, length)
    detector.stream().step(rollout.step(0))
    assert min(sizes) == smallest_group(detector.rows(dim), widths, groups, FINAL_GROUPS)


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize(
    ('name', 'params', 'dim', 'horizon'),
    [
        ('rnd', {'groups': 8}, 6, 4),  # two rows of one channel
        ('rnd', {'down_dims': [16, 16], 'groups': 8}, 6, 2),  # one row of two channels
        ('logpzo', {'groups': 8, 'in_dim': 4}, 16, 1),
        ('logpzo', {'groups': 2, 'in_dim': 4}, 8, 1),
    ],
)
def test_live_scores_equal_offline_scores_if_groups_are_small(name, params, dim, horizon, seed):
    detector = density_of(name, dim, horizon, seed, **params)
    for rollout in rollouts_with_actions(8, dim, horizon, seed):
        np.testing.assert_allclose(
            streamed(detector, rollout), detector.score(rollout), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    ('name', 'own', 'horizon', 'found'),
    [
        ('logpzo', {'in_dim': 4, 'kernel_size': 1}, 5, r'\[8, 8\], groups 8 .* of 2 rows'),
        ('rnd', {'kernel_size': 1}, 2, r'\[8, 8\], groups 8 and sequences of 2 rows'),
    ],
)
def test_a_group_of_one_value_is_refused_at_fit_and_at_load(name, own, horizon, found):
    rollouts = rollouts_with_actions(dim=8, horizon=horizon)
    detector = make_detector(name, **{**TINY, **own, 'groups': 8})
    refusal = (
        rf'{name}: parameters down_dims and groups: .*found a group of 1 value.*{found}.*fewer'
    )
    with pytest.raises(DetectorError, match=refusal):
        detector.fit(rollouts)
    assert not detector.fitted
    # The arrays have the same shapes for any number of groups.
    state = make_detector(name, **{**TINY, **own}).fit(rollouts).state()
    with pytest.raises(DetectorError, match=refusal):
        make_detector(name, **{**TINY, **own, 'groups': 8}).load_state(state, 8)


# --- what cannot be


@pytest.mark.parametrize('name', ['rnd', 'logpzo'])
@pytest.mark.parametrize(
    ('params', 'message'),
    [
        ({'down_dims': [8]}, r'down_dims: expected two or more .*found \[8\]'),
        ({'down_dims': [8, 10]}, r'multiples of groups \(4\).*found \[8, 10\]'),
        ({'down_dims': [4, 8]}, r'first integer that is also a multiple of 8, found \[4, 8\]'),
        ({'down_dims': 8}, 'down_dims: expected .* a list of integers'),
        ({'kernel_size': 4}, 'kernel_size: expected an odd integer'),
        ({'time_dim': 3}, 'time_dim: expected an even integer'),
        ({'epochs': 0}, 'epochs: expected an integer of at least 1'),
        ({'accumulate': 'max'}, 'accumulate: expected one of'),
    ],
)
def test_impossible_parameters_are_refused(name, params, message):
    with pytest.raises(DetectorError, match=message):
        make_detector(name, **{**TINY, **params}).fit(rollouts_with_actions())


def test_chunks_of_another_shape_are_refused():
    rollouts = rollouts_with_actions()
    detector = make_detector('rnd', **TINY).fit(rollouts)
    short = dataclasses.replace(rollouts[1], actions=rollouts[1].actions[:, :, :4])
    with pytest.raises(StepError, match=r"rollout 'task 1/1'.*\(5, 7\).*\(4, 7\)"):
        detector.score(short)
    with pytest.raises(StepError, match=r'step 0.*\(5, 7\).*\(4, 7\)'):
        detector.stream().step(short.step(0))
    with pytest.raises(DetectorError, match=r"rollout 'task 1/1'"):
        make_detector('rnd', **TINY).fit([rollouts[0], short])


def test_a_loss_that_explodes_is_no_detector():
    rollouts = rollouts_with_actions()
    for rollout in rollouts:
        rollout.features = rollout.features * np.float32(1e30)
    detector = make_detector('logpzo', **TINY)
    with pytest.raises(
        DetectorError, match=r'epoch \d: expected a finite training loss, found (nan|inf)'
    ):
        detector.fit(rollouts)
    assert not detector.fitted


@pytest.mark.parametrize('shape', [[0, 7], [5], [5.0, 7.0]])
def test_an_impossible_action_shape_is_refused(shape):
    state = make_detector('rnd', **TINY).fit(rollouts_with_actions()).state()
    with pytest.raises(DetectorError, match='action_shape'):
        make_detector('rnd', **TINY).load_state({**state, 'action_shape': np.array(shape)}, 6)


def test_the_published_size_is_the_default():
    detector = make_detector('rnd')
    detector.check_params()
    detector.action_shape_ = (10, 7)
    with torch.device('meta'):
        networks = detector.build(64)
    for network in networks.values():
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(63.9e6, rel=1e-3)
