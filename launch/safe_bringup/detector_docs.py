# SPDX-License-Identifier: Apache-2.0
"""Makes ``docs/reference/detectors.md`` from the registry and the docstrings of the detectors.

``python -m safe_bringup.detector_docs docs/reference/detectors.md``
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence

from safe_bringup.generated_page import write_page
from safe_monitor_node.detectors import DETECTORS, ENTRIES, Detector

INTRODUCTION = """\
<!-- Made by: python -m safe_bringup.detector_docs docs/reference/detectors.md -->

# Detectors

Every detector has the same contract: `fit(rollouts)`, `score(rollout)`, `stream()`, and a detector
folder. On the command line, give `--detector NAME`, and `--param NAME=VALUE` for its parameters
(`null` means None). `info` of a detector folder lists the parameters of the fit.

One page per family explains them: [learned](../explanation/detectors_learned.md), [embedding
distances](../explanation/detectors_embedding.md), [density](../explanation/detectors_density.md),
[hand-crafted](../explanation/detectors_handcrafted.md), [linear
probe](../explanation/detectors_probe.md). [Which detector](../explanation/which_detector.md) helps
to choose.

A live step takes less than 5 ms (p99) on one core at 1024 and 4096 features, except for `rnd` and
`logpzo`, which read 0.5 to 1.5 GB of weights at each step. `./dev bench detectors` prints the time,
the necessary matrix products and the memory of each detector."""

# Descriptions and origins of the groups in Table 1.
GROUPS = {
    'Token uncertainty': 'Baselines of SAFE: how unsure the policy was of the tokens it emitted.',
    'Embedding distribution': 'Baselines of SAFE: how far a hidden state is from the training '
    'steps of both outcomes. `rnd` and `logpzo` are from FAIL-Detect.',
    'Sample consistency': 'Baselines of SAFE: how far the action chunks sampled in one step lie '
    'apart. They need a policy that draws several samples.',
    'Action consistency': 'Baselines of SAFE, from Agia et al.: how far consecutive action chunks '
    'contradict each other.',
    'SAFE': 'The detectors of SAFE, section 4.2.',
    'Ours': 'Not in the paper.',
    'Controls': (
        'Baselines that use no information about the policy. A useful detector must be better '
        'than all of them.'
    ),
}


def page() -> str:
    """Return the whole page as Markdown."""
    sections = [section(group) for group in dict.fromkeys(e.group for e in ENTRIES.values())]
    return '\n\n'.join([INTRODUCTION, *sections]) + '\n'


def section(group: str) -> str:
    """Return the section of a group: a table of its detectors, then each in detail."""
    names = [name for name, entry in ENTRIES.items() if entry.group == group]
    rows = [('name', 'in tables', 'needs', 'score')]
    for name in names:
        needs = ', '.join(sorted(DETECTORS[name].needs)).replace('_', ' ')
        summary = description(DETECTORS[name])[0]
        rows.append((f'[`{name}`](#{name})', ENTRIES[name].title, needs or '-', summary))
    heading = f'## {group}\n\n{GROUPS[group]}'
    return '\n\n'.join([heading, table(rows), *(details(name) for name in names)])


def details(name: str) -> str:
    """Return the part of one detector: its description and a table of its parameters."""
    detector = DETECTORS[name]
    blocks = [f'### {name}', *description(detector)]
    meanings = parameter_meanings(detector)
    rows = [('parameter', 'default', 'values', 'meaning')]
    for parameter, default in detector().get_params().items():
        values, meaning = meanings[parameter]
        rows.append((f'`{parameter}`', f'`{json.dumps(default)}`', values, meaning))
    if len(rows) > 1:
        blocks.append(table(rows))
    return '\n\n'.join(blocks)


def description(detector: type[Detector]) -> list[str]:
    """Return the paragraphs of the docstring before its sections."""
    text = (inspect.getdoc(detector) or '').split('\n\nParameters\n---')[0]
    return [markdown(paragraph) for paragraph in text.split('\n\n')]


def parameter_meanings(detector: type[Detector]) -> dict[str, tuple[str, str]]:
    """Return the documented values and meaning of each parameter, also of inherited ones."""
    found: dict[str, tuple[str, str]] = {}
    for cls in reversed(detector.__mro__):
        found |= dict(_documented(inspect.cleandoc(cls.__doc__ or '')))
    return found


def _documented(docstring: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield name, values and meaning of the parameters in a docstring (numpydoc)."""
    _, _, section = docstring.partition('\n\nParameters\n----------\n')
    section = section.split('\n\n')[0]
    for entry in re.split(r'\n(?=\S)', section) if section else ():
        head, _, body = entry.partition('\n')
        names, _, values = head.partition(' : ')
        for name in names.split(', '):
            yield name, (markdown(values), markdown(inspect.cleandoc(body)))


def markdown(text: str) -> str:
    """Return text of a docstring as one line of Markdown."""
    text = re.sub(r':\w+:`~?([^`]+)`', r'`\1`', text).replace('``', '`')
    text = re.sub(r"'(\w+)'", r'`\1`', text)
    return re.sub(r'\s+', ' ', re.sub(r'[{}]', '', text)).strip()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is the heading."""
    header, *body = rows
    escaped = [[cell.replace('|', '\\|') for cell in row] for row in body]
    lines = [list(header), ['---'] * len(header), *escaped]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page to the file that is given, or print it."""
    return write_page(page(), __doc__, arguments)


if __name__ == '__main__':
    sys.exit(main())
