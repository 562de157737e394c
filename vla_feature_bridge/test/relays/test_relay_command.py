# SPDX-License-Identifier: Apache-2.0
"""The command ``relay``: what it prints, how it ends, and that it needs no ROS."""

import signal
import socket
import subprocess
import sys
import time

import pytest
from relay_processes import Process, free_port, run_relay

OPTIONS = ('openvla', '--episode', 'none')


def run(*arguments):
    command = [sys.executable, '-m', 'vla_feature_bridge.relays', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_errors_are_one_line_on_standard_error():
    with socket.create_server(('127.0.0.1', 0)) as other:
        address = f'127.0.0.1:{other.getsockname()[1]}'
        done = run(*OPTIONS, '--listen', address)
    assert done.returncode == 1
    assert done.stderr.startswith(f'relay openvla: --listen {address}: expected an address')
    assert done.stderr.count('\n') == 1
    done = run(*OPTIONS, '--server', 'nowhere')
    assert (done.returncode, done.stderr.count('\n')) == (1, 1)
    assert run('--help').returncode == run('groot', '--help').returncode == 0
    assert run('openpi').returncode == 2


@pytest.mark.parametrize('bridge', ['unix:relative', 'tcp://nowhere', 'x'])
def test_a_wrong_address_of_the_bridge_is_said_at_once(bridge):
    done = run(*OPTIONS, '--listen', f'127.0.0.1:{free_port()}', '--bridge', bridge)
    assert done.returncode == 1
    assert bridge in done.stderr


def test_an_interrupt_ends_it_while_a_client_waits():
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        with run_relay('openvla', port, *OPTIONS[1:], '--statistics', '0.2') as relay:
            relay.wait_for('answers;')
            server.accept()[0].close()
            client = socket.create_connection(('127.0.0.1', relay.port))
            forwarded, _ = server.accept()
            relay.wait_for('0 inferences, 0 steps')
            assert relay.interrupt() == 0
            assert client.recv(1) == b''
            client.close()
            forwarded.close()
            assert not any('Traceback' in line for line in relay.lines)


def test_other_machines_are_mentioned():
    with Process(
        *('-m', 'vla_feature_bridge.relays', *OPTIONS),
        *('--listen', f'0.0.0.0:{free_port()}', '--server', f'127.0.0.1:{free_port()}'),
    ) as relay:
        relay.wait_for('checks no passwords')
        relay.wait_for('cannot be reached')
        assert relay.interrupt() == 0


def test_a_relay_goes_on_if_nobody_reads_its_lines():
    with socket.create_server(('127.0.0.1', 0)) as server:
        port, listen = server.getsockname()[1], free_port()
        command = [sys.executable, '-m', 'vla_feature_bridge.relays', *OPTIONS]
        command += ['--listen', f'127.0.0.1:{listen}', '--server', f'127.0.0.1:{port}']
        with subprocess.Popen(command, stdout=subprocess.PIPE) as relay:
            relay.stdout.close()
            server.settimeout(60)
            server.accept()[0].close()
            client = connect(listen)
            forwarded, _ = server.accept()
            client.sendall(b'GET / HTTP/1.1\r\n\r\n')
            assert forwarded.recv(3) == b'GET'
            client.close()
            forwarded.close()
            relay.send_signal(signal.SIGINT)
            assert relay.wait(60) == 0


def connect(port):
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(('127.0.0.1', port))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline


LOADED = """
import sys
import vla_feature_bridge.relays.main
print(sorted({name.split('.')[0] for name in sys.modules}))
"""


def test_it_needs_numpy_and_the_standard_library_only():
    done = subprocess.run(
        [sys.executable, '-c', LOADED], capture_output=True, text=True, timeout=60
    )
    assert "'numpy'" in done.stdout
    for name in ('rclpy', 'torch', 'pyarrow', 'msgpack', 'zmq', 'websockets', 'json_numpy'):
        assert f"'{name}'" not in done.stdout
