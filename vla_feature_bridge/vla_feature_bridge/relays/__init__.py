# SPDX-License-Identifier: Apache-2.0
"""Relays between a policy server and its client: they forward bytes and send policy steps.

A relay needs only the standard library and NumPy. It forwards the bytes unchanged. It divides a
copy of the bytes into messages, and one worker thread decodes the messages.

The modules; each may import only modules above it:

arrays             arrays that a message describes; dtypes from a fixed list
bounded_msgpack    msgpack with limits, and its three encodings of arrays
bounded_json       JSON with limits, and the arrays of json-numpy
byte_stream        the base class of the parsers that divide a stream into messages
http_stream        HTTP/1.1
websocket_stream   WebSocket
zmtp_stream        ZeroMQ
exchanges          requests paired with their replies, by protocol
tcp_link           one connection: forwards its bytes
addresses          HOST:PORT
crew               a pool of threads
tcp_relay          listens, connects, and refuses clients while the server cannot be reached
kill_gate          stops GR00T's request ``kill``
work_queue         the queue of the worker thread
readings           reads the data of a step from decoded messages
policies           the messages of openpi, GR00T and OpenVLA
episodes           where an episode begins and ends
reporter           sends the steps
options            the command line
main               runs a relay
"""
