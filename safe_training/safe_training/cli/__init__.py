# SPDX-License-Identifier: Apache-2.0
"""The command line: argparse and printing, one module a verb. Nothing imports this room.

main              the verbs
options           options that verbs share
progress          progress of long work
"""
