# SPDX-License-Identifier: Apache-2.0
"""The plugin of LeRobot, in the process of real policies of LeRobot and in LeRobot's own programs.

Needs an environment with LeRobot, in Python 3.12 or newer::

    pip install 'lerobot[pi,smolvla,diffusion,async,evaluation]==0.6.1' pytest hypothesis
    HF_HUB_OFFLINE=1 python -m pytest vla_feature_bridge/test/taps/test_lerobot_plugin.py
"""

import gc
import importlib
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tap_support import inputs_by_hand

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.taps.lerobot_settings import LerobotSettings
from vla_feature_bridge.wire import StepReceiver

pytest.importorskip(
    'lerobot',
    reason="NOT CHECKED HERE: the plugin of LeRobot; pip install 'lerobot[pi,smolvla,diffusion]'",
)
tiny = pytest.importorskip('tiny_lerobot')

from lerobot.policies.act.modeling_act import ACTPolicy  # noqa: E402
from lerobot.policies.pretrained import PreTrainedPolicy  # noqa: E402

from vla_feature_bridge.taps import lerobot_plugin  # noqa: E402

PACKAGE = Path(__file__).parents[2]
PLUGIN = PACKAGE / 'plugins' / 'lerobot_policy_safe'


class Bridge:
    """Keeps what sources send; a monitor listens."""

    def __init__(self, address):
        self.address, self.messages, self.hellos = address, [], []
        self._receiver = StepReceiver(
            [address],
            lambda source, message: self.messages.append(message),
            on_source=lambda hello, connected: self.hellos.append((hello, connected)),
        )
        self._receiver.set_status(True)

    def close(self):
        self._receiver.close()

    def wait_for(self, condition, what, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (what, self.kinds(), self.hellos)
            time.sleep(0.02)

    def wait_for_kinds(self, *expected):
        self.wait_for(lambda: len(self.kinds()) >= len(expected), expected)
        assert self.kinds() == list(expected)

    def kinds(self):
        return [m.kind if isinstance(m, EpisodeEventRecord) else m.step for m in self.messages]

    @property
    def steps(self):
        return [m for m in self.messages if not isinstance(m, EpisodeEventRecord)]

    @property
    def events(self):
        return [m for m in self.messages if isinstance(m, EpisodeEventRecord)]


@pytest.fixture
def bridge(tmp_path):
    running = Bridge(f'unix:{tmp_path}/bridge.sock')
    yield running
    running.close()


@pytest.fixture
def plugin(bridge):
    """Return a function that installs the plugin; it is uninstalled after the test."""

    def install(**settings):
        return lerobot_plugin.install(
            LerobotSettings(**{'address': bridge.address, 'wait': 20.0, **settings})
        )

    yield install
    lerobot_plugin.uninstall()


# -- in the process of the policy


def test_each_inference_is_a_step_and_each_reset_an_episode(plugin, bridge):
    plugin(task='towels')
    policy = tiny.act()
    states = []
    for number in range(2):
        policy.reset()
        for tick in range(11):
            with inputs_by_hand(policy.model.action_head) as found, torch.inference_mode():
                policy.select_action(tiny.observation(seed=10 * number + tick))
            states += [state[0].mean(0).numpy() for state in found]
    lerobot_plugin.uninstall()
    bridge.wait_for_kinds('start', 0, 1, 2, 'end', 'start', 0, 1, 2, 'end')
    for step, state in zip(bridge.steps, states, strict=True):
        np.testing.assert_allclose(step.features, state, rtol=0, atol=1e-6)
        assert (step.feature_name, step.action_space) == ('pre_action[horizon=mean]', 'normalized')
        assert (step.exec_horizon, step.policy) == (5, 'act')
        assert step.instruction == 'fold the towel'
        assert step.actions.shape == (1, 12, 6)
    assert {event.task for event in bridge.events if event.kind == 'start'} == {'towels'}
    assert bridge.events[-1].reason == 'the tap was uninstalled'


def test_without_a_name_of_the_task_the_instruction_is_the_task(plugin, bridge):
    plugin()
    tiny.act().select_action(tiny.observation())
    bridge.wait_for_kinds('start', 0)
    assert bridge.events[0].task == bridge.events[0].instruction == 'fold the towel'


@pytest.mark.parametrize(
    ('module', 'name'),
    [
        ('lerobot.policies.pi05.processor_pi05', 'Pi05PrepareStateTokenizerProcessorStep'),
        (
            'lerobot.policies.pi0_fast.processor_pi0_fast',
            'Pi0FastPrepareStateAndLanguageTokenizerProcessorStep',
        ),
        ('lerobot.policies.pi0.processor_pi0', 'Pi0NewLineProcessor'),
        ('lerobot.processor', 'NewLineTaskProcessorStep'),
    ],
)
def test_the_instruction_is_read_out_of_the_prompt_of_the_processor(plugin, bridge, module, name):
    from lerobot.processor import TransitionKey

    process = getattr(importlib.import_module(module), name)()
    plugin()
    policy = tiny.act(n_action_steps=1)
    for seed in range(2):
        observation = tiny.observation(seed=seed)
        transition = process(
            {
                TransitionKey.OBSERVATION: {'observation.state': observation['observation.state']},
                TransitionKey.COMPLEMENTARY_DATA: {'task': observation['task']},
            }
        )
        task = transition[TransitionKey.COMPLEMENTARY_DATA]['task']
        assert task != observation['task'], 'the processor changes it'
        policy.select_action({**observation, 'task': task})
    bridge.wait_for_kinds('start', 0, 1)
    assert bridge.events[0].task == 'fold the towel'
    assert {step.instruction for step in bridge.steps} == {'fold the towel'}


def test_uninstall_leaves_nothing(plugin):
    before = dict(vars(PreTrainedPolicy)), dict(vars(ACTPolicy))
    plugin()
    assert vars(PreTrainedPolicy)['train'] is not before[0].get('train')
    policy = tiny.act()
    assert policy.model.action_head._forward_pre_hooks
    lerobot_plugin.uninstall()
    assert (dict(vars(PreTrainedPolicy)), dict(vars(ACTPolicy))) == before
    assert not policy.model.action_head._forward_pre_hooks
    assert not {'reset', 'predict_action_chunk', 'select_action'} & set(vars(policy))


def test_actions_are_bit_equal_with_and_without(plugin):
    def chunk():
        policy = tiny.act()
        return torch.stack([policy.select_action(tiny.observation(seed=i)) for i in range(6)])

    before = chunk()
    plugin()
    torch.testing.assert_close(chunk(), before, rtol=0, atol=0)


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv('SAFE_TAP', '0')
    assert lerobot_plugin.install() is None
    assert 'train' not in vars(PreTrainedPolicy)


def test_a_wrong_variable_is_said_and_nothing_is_tapped(monkeypatch, caplog):
    monkeypatch.setenv('SAFE_BRIDGE', 'nowhere')
    assert lerobot_plugin.install() is None
    assert "found 'nowhere'" in caplog.text
    assert 'train' not in vars(PreTrainedPolicy)


def test_a_preset_that_does_not_fit_is_said_once_and_the_policy_goes_on(plugin, bridge, caplog):
    plugin(preset='lerobot_pi0')
    policy = tiny.act()
    for _ in range(3):
        policy.eval()
        policy.select_action(tiny.observation())
    assert caplog.text.count('the policy goes on without a tap') == 1
    assert not bridge.messages
    assert not vars(policy).get('reset')


def test_a_black_box_sends_actions_without_features(plugin, bridge):
    plugin(preset='black_box')
    act = tiny.act()
    act.reset()
    act.select_action(tiny.observation())
    bridge.wait_for_kinds('start', 0)
    step = bridge.steps[0]
    assert (step.feature_name, step.features.shape) == ('none', (0,))
    assert (step.policy, step.exec_horizon, step.action_space) == ('act', 5, 'normalized')
    assert step.actions.shape == (1, 12, 6)


def test_a_class_that_no_preset_names(plugin, bridge, caplog):
    from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig
    from lerobot.policies.vqbet.modeling_vqbet import VQBeTPolicy

    plugin()
    VQBeTPolicy(
        VQBeTConfig(
            **tiny.features(84), pretrained_backbone_weights=None, device='cpu', crop_shape=None
        )
    ).eval()
    assert 'no preset for VQBeTPolicy: it is a black box' in caplog.text
    bridge.wait_for(lambda: bridge.hellos, 'connected')
    hello, _ = bridge.hellos[0]
    assert (hello.feature_name, hello.policy) == ('none', 'vqbet')


def test_a_policy_whose_inferences_are_not_seen_is_reported(plugin, bridge, caplog, tmp_path):
    # select_action of SmolVLA does not call predict_action_chunk.
    plugin(preset='black_box')
    policy = tiny.smolvla(tiny.write_tiny_smolvlm(tmp_path))
    for tick in range(15):
        policy.select_action(tiny.observation(seed=tick))
    assert caplog.text.count('but no inference was seen') == 1
    assert not bridge.messages


def test_the_newest_policy_takes_over(plugin, bridge):
    plugin()
    first = tiny.act()
    first.select_action(tiny.observation())
    second = tiny.act()
    for policy in (first, second, first, second):
        policy.eval()
        policy.reset()
        policy.select_action(tiny.observation())
    bridge.wait_for_kinds('start', 0, 'end', 'start', 0, 'end', 'start', 0)
    assert bridge.events[1].reason == 'another policy was loaded'
    assert not first.model.action_head._forward_pre_hooks


def test_a_policy_that_is_loaded_in_training_mode_is_tapped_before_its_first_inference(
    plugin, bridge, tmp_path
):
    """pi0's ``from_pretrained`` leaves it in training mode; it calls eval() in each inference."""
    from lerobot.policies.pi0 import modeling_pi0

    tiny.pi0().save_pretrained(tmp_path / 'pi0')
    plugin()
    with tiny.tiny_gemma(modeling_pi0):
        policy = modeling_pi0.PI0Policy.from_pretrained(tmp_path / 'pi0')
    policy.predict_action_chunk(tiny.observation())
    policy.predict_action_chunk(tiny.observation(seed=1))
    bridge.wait_for_kinds('start', 0, 1)
    assert bridge.steps[0].feature_name == 'pre_velocity[horizon=mean,denoise=mean]'


def test_real_time_chunking_has_its_nominal_horizon(plugin, bridge, tmp_path):
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    plugin()
    policy = tiny.smolvla(tiny.write_tiny_smolvlm(tmp_path))
    # As lerobot-rollout does it: after the policy was loaded, and before it is used.
    policy.config.rtc_config = RTCConfig(enabled=True, execution_horizon=4)
    policy.init_rtc_processor()
    policy.eval()
    chunk = policy.predict_action_chunk(tiny.observation())
    policy.predict_action_chunk(
        tiny.observation(seed=1), inference_delay=1, prev_chunk_left_over=chunk[0, 4:]
    )
    bridge.wait_for_kinds('start', 0, 1)
    assert [step.exec_horizon for step in bridge.steps] == [4, 4]


def test_a_class_that_is_defined_later_and_replaces_train(plugin, bridge):
    plugin()
    calls = []

    class LatePolicy(ACTPolicy):
        def train(self, mode=True):
            calls.append(mode)
            return super().train(mode)

    policy = LatePolicy(tiny.act(device='cpu').config)
    policy.eval()
    policy.select_action(tiny.observation())
    assert set(calls) == {False}
    bridge.wait_for_kinds('start', 0)


def test_no_bridge_is_said_and_the_policy_goes_on(plugin, caplog, tmp_path):
    plugin(address=f'unix:{tmp_path}/nobody.sock', wait=0.2)
    policy = tiny.act()
    assert 'no bridge answers after 0.2 s' in caplog.text
    assert policy.select_action(tiny.observation()).shape == (1, 6)


def test_threads_share_one_policy(plugin, bridge):
    plugin()
    policy = tiny.act()
    policy.predict_action_chunk(tiny.observation())

    def infer(seed):
        for _ in range(4):
            policy.predict_action_chunk(tiny.observation(seed=seed))

    threads = [threading.Thread(target=infer, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bridge.wait_for(lambda: len(bridge.steps) >= 9, 'all steps')
    assert [step.step for step in bridge.steps] == list(range(9))
    seen = {step.features.tobytes() for step in bridge.steps}
    assert len(seen) == 3, 'no step mixes two inferences'


# -- in LeRobot's own programs


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Return a folder with the distribution of the plugin, as pip installs it."""
    folder = tmp_path_factory.mktemp('site')
    source = shutil.copytree(PLUGIN, folder / 'source', ignore=shutil.ignore_patterns('build'))
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation']
    subprocess.run([*command, '--target', folder / 'site', source], check=True)
    return folder / 'site'


@pytest.fixture(scope='module')
def act_folder(tmp_path_factory):
    return tiny.save(tiny.act(), tmp_path_factory.mktemp('policies') / 'act')


@pytest.fixture
def run(site, bridge, tmp_path):
    """Return a function that starts a program of LeRobot in a process of its own."""
    started = []

    def start(module, *arguments, **variables):
        log = (tmp_path / f'program{len(started)}.log').open('w')
        paths = [site, PACKAGE, Path(__file__).parent, os.environ.get('PYTHONPATH', '')]
        process = subprocess.Popen(
            [sys.executable, '-m', module, *map(str, arguments)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env={
                **os.environ,
                'PYTHONPATH': os.pathsep.join(map(str, paths)),
                'HF_HUB_OFFLINE': '1',
                'SAFE_BRIDGE': bridge.address,
                'SAFE_WAIT': '20',
                **variables,
            },
        )
        log.close()
        process.log = Path(log.name)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def start_evaluation(run, act_folder, environments=1, **variables):
    pytest.importorskip(
        'datasets', reason="NOT CHECKED HERE: pip install 'lerobot[evaluation,dataset]'"
    )
    return run(
        'lerobot.scripts.lerobot_eval',
        f'--policy.path={act_folder}',
        '--policy.device=cpu',
        '--env.discover_packages_path=tiny_lerobot_env',
        '--env.type=tiny',
        f'--eval.batch_size={environments}',
        '--eval.n_episodes=2',
        **variables,
    )


def evaluate(run, act_folder, **variables):
    process = start_evaluation(run, act_folder, **variables)
    assert process.wait(300) == 0, process.log.read_text()
    return process.log.read_text()


def test_lerobot_eval_is_tapped_without_a_change(run, bridge, act_folder):
    log = evaluate(run, act_folder)
    assert 'Imported third-party plugin: lerobot_policy_safe' in log
    assert 'tap of ACTPolicy: preset lerobot_act' in log
    bridge.wait_for_kinds('start', 0, 1, 2, 'end', 'start', 0, 1, 2, 'end')
    assert bridge.events[0].instruction == 'reach the corner'
    assert [event.reason for event in bridge.events if event.kind == 'end'] == [
        'the policy was reset',
        'the program ended',
    ]


def test_lerobot_eval_without_the_tap(run, bridge, act_folder):
    log = evaluate(run, act_folder, SAFE_TAP='0')
    assert 'Imported third-party plugin: lerobot_policy_safe' in log
    assert 'tap of' not in log
    assert not bridge.hellos


def test_lerobot_eval_of_several_environments_at_once_says_what_to_change(run, bridge, act_folder):
    process = start_evaluation(run, act_folder, environments=2)
    assert process.wait(300) == 0, process.log.read_text()
    assert not bridge.steps
    assert 'batch of 1' in process.log.read_text()


def test_the_asynchronous_policy_server_is_tapped(run, bridge, act_folder):
    grpc = pytest.importorskip('grpc')
    from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import send_bytes_in_chunks

    port = free_port()
    server = run('vla_feature_bridge.taps.lerobot_server', '--host=127.0.0.1', f'--port={port}')
    with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        for session in range(2):
            stub.Ready(services_pb2.Empty(), wait_for_ready=True, timeout=120)
            policy = RemotePolicyConfig('act', str(act_folder), camera_features(), 10, 'cpu')
            stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(policy)))
            for number in range(3):
                observation = TimedObservation(
                    time.time(), number, raw_observation(number), must_go=True
                )
                stub.SendObservations(
                    send_bytes_in_chunks(pickle.dumps(observation), services_pb2.Observation)
                )
                actions = pickle.loads(stub.GetActions(services_pb2.Empty()).data)
                assert len(actions) == 10, server.log.read_text()
            bridge.wait_for(lambda n=session: len(bridge.steps) == 3 * (n + 1), 'steps')
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 130, server.log.read_text()
    bridge.wait_for_kinds('start', 0, 1, 2, 'end', 'start', 0, 1, 2, 'end')
    assert [event.reason for event in bridge.events if event.kind == 'end'] == [
        'another policy was loaded',
        'the program ended',
    ]
    assert {step.instruction for step in bridge.steps} == {'fold the towel'}
    # The chunk of the network is normalised; the wire of LeRobot carries the robot's units.
    sent = torch.tensor(bridge.steps[-1].actions[0, :10])
    received = torch.stack([action.get_action() for action in actions])
    torch.testing.assert_close(0.1 + 2.0 * sent, received, rtol=1e-5, atol=1e-5)


def camera_features():
    names = [f'joint{number}' for number in range(tiny.STATE_DIM)]
    return {
        'observation.state': {'dtype': 'float32', 'shape': (tiny.STATE_DIM,), 'names': names},
        tiny.CAMERA: {
            'dtype': 'image',
            'shape': (56, 56, 3),
            'names': ['height', 'width', 'channels'],
        },
    }


def raw_observation(seed):
    values = np.random.default_rng(seed).normal(size=tiny.STATE_DIM)
    image = np.full((56, 56, 3), 40 * seed, np.uint8)
    joints = {f'joint{number}': float(value) for number, value in enumerate(values)}
    return {**joints, 'front': image, 'task': 'fold the towel'}


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture(autouse=True)
def information(caplog):
    caplog.set_level(logging.INFO, logger='vla_feature_bridge')
    yield
    gc.collect()
