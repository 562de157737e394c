# SPDX-License-Identifier: Apache-2.0
"""A subscription follows its publishers over DDS: type, QoS, headers of large messages."""

import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Int32, String

from vla_feature_bridge.ros.message_types import MessageTypeError
from vla_feature_bridge.ros.messages import time_from_message, time_to_message
from vla_feature_bridge.ros.topic_input import HeaderOnly, TopicInput, TopicInputError

BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


@pytest.fixture
def graph():
    """Yield a reading node, a publishing node, and a function that spins both for a condition."""
    context = rclpy.Context()
    rclpy.init(context=context)
    reader, writer = Node('reader', context=context), Node('writer', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(reader)
    executor.add_node(writer)

    def spin_until(condition):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            executor.spin_once(timeout_sec=0.05)

    yield reader, writer, spin_until
    executor.shutdown()
    reader.destroy_node()
    writer.destroy_node()
    rclpy.shutdown(context=context)


def connect(topic, publisher, spin_until):
    """Let the input find a publisher."""

    def is_connected():
        topic.update()
        return publisher.get_subscription_count() > 0

    spin_until(is_connected)


@pytest.mark.parametrize('qos', [10, BEST_EFFORT, LATCHED])
def test_every_publisher_is_heard_and_a_latched_message_too(graph, qos):
    reader, writer, spin_until = graph
    heard = []
    topic = TopicInput(reader, 'signs', heard.append, latched=True)
    assert topic.problem == 'no publisher'
    assert topic.topic == '/signs'
    publisher = writer.create_publisher(String, 'signs', qos)
    publisher.publish(String(data='before'))
    connect(topic, publisher, spin_until)
    assert (topic.problem, topic.publishers, topic.message_class) == ('', 1, String)

    if qos is LATCHED:
        spin_until(lambda: heard)

    def publish_and_look():
        publisher.publish(String(data='after'))
        return any(message.data == 'after' for message in heard)

    spin_until(publish_and_look)
    assert ('before' in {message.data for message in heard}) == (qos is LATCHED)
    assert topic.received == len(heard)
    topic.close()


def test_a_topic_of_another_type_is_refused_with_both_names(graph):
    reader, writer, spin_until = graph
    chosen = TopicInput(reader, 'number', print, types=('std_msgs/msg/String',))
    given = TopicInput(reader, 'number', print, type_name='std_msgs/String')
    writer.create_publisher(Int32, 'number', 10)

    def both_have_looked():
        for topic in (chosen, given):
            topic.update()
        return 'no publisher' not in (chosen.problem, given.problem)

    spin_until(both_have_looked)
    assert (
        'expected messages of type std_msgs/msg/String, found std_msgs/msg/Int32' in chosen.problem
    )
    assert 'expected publishers of type std_msgs/msg/String' in given.problem
    assert given.publishers == 0
    with pytest.raises(TopicInputError):
        TopicInput(reader, 'number', print, types=('a/msg/B',), type_name='std_msgs/msg/String')
    with pytest.raises(MessageTypeError):
        TopicInput(reader, 'number', print, type_name='nowhere_msgs/msg/String')


def test_an_error_of_the_reader_is_kept_until_the_next_good_message(graph):
    reader, writer, spin_until = graph

    def take(message):
        if message.data == 'bad':
            raise ValueError('it is bad')

    topic = TopicInput(reader, 'signs', take)
    publisher = writer.create_publisher(String, 'signs', 10)
    connect(topic, publisher, spin_until)
    publisher.publish(String(data='bad'))
    spin_until(lambda: topic.problem == 'ValueError: it is bad')
    publisher.publish(String(data='good'))
    spin_until(lambda: topic.problem == '')
    assert topic.received == 2


def test_only_the_header_of_an_image_is_read(graph):
    reader, writer, spin_until = graph
    heard = []
    topic = TopicInput(reader, 'camera', heard.append, header_only=True)
    publisher = writer.create_publisher(Image, 'camera', BEST_EFFORT)
    connect(topic, publisher, spin_until)
    image = Image(height=10, width=10, step=30, encoding='rgb8', data=bytes(300))
    image.header.stamp = time_to_message(1_700_000_000_123_456_789)

    def publish_and_look():
        publisher.publish(image)
        return heard

    spin_until(publish_and_look)
    assert isinstance(heard[0], HeaderOnly)
    assert time_from_message(heard[0].header.stamp) == 1_700_000_000_123_456_789
    with pytest.raises(TopicInputError, match='found 5 bytes'):
        HeaderOnly(bytes(5))


def test_publishers_of_the_own_node_are_not_followed(graph):
    reader, _, spin_until = graph
    reader.create_publisher(String, 'own', 10)
    spin_until(lambda: reader.count_publishers('own') == 1)
    assert TopicInput(reader, 'own', print).problem == 'no publisher'
