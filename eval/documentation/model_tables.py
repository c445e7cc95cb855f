"""Count every named model and write the tables of `docs/models/`.

    python eval/documentation/model_tables.py            # docs/models/*.md from two_stream/zoo/costs.json
    python eval/documentation/model_tables.py --count    # first count every network on the meta device (minutes)
    python eval/documentation/model_tables.py --check    # write nothing; exit code 1 if a page is outdated

The table after `<!-- table: PATTERN … -->` lists the models whose names match, with the figures of
`docs/models/published.yaml` next to ours.
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase
from typing import Any

import yaml
from tables import ROOT, markdown, update

from two_stream import zoo
from two_stream.runtime.files import write_json
from two_stream.types import size_text
from two_stream.zoo.record import FILE, model_costs

PAGES = ROOT / "docs" / "models"
PUBLISHED = PAGES / "published.yaml"
MARKS = "ᵃᵇᶜᵈᵉ"
"""superscripts of the sources of published figures"""
_TWO = (100, 200)
"""numbers of classes from which the classifier's part is computed"""


def count(record: zoo.ModelRecord) -> dict[str, Any]:
    """Return the entry of a model in `costs.json`."""
    from two_stream.profiling.costs import meta_model, multiply_adds, parameter_count

    few, many = (meta_model(record.options, classes) for classes in _TWO)
    entry = {}
    for name, counter in (("parameters", parameter_count), ("multiply_adds", multiply_adds)):
        low, high = counter(few), counter(many)
        each = (high - low) // (_TWO[1] - _TWO[0])
        entry[name] = [low - each * _TWO[0], each]
    spec = few.spec
    crop = spec.crop if isinstance(spec.crop, int) else list(spec.crop)
    return {**entry, "clip": [spec.clip_length, spec.stride, crop]}


def table(patterns: list[str], published: dict[str, Any]) -> str:
    """Return the Markdown table of the models that match."""
    records = [r for r in zoo.records() if any(fnmatchcase(r.name, pattern) for pattern in patterns)]
    head = ["model", "clip", "classes", "M params", "G mult-adds"]
    sources = sorted({theirs["source"] for r in records if (theirs := published.get(r.name, {}))})
    made = markdown(head, (_row(record, published.get(record.name, {}), sources) for record in records))
    notes = ", ".join(f"{MARKS[number]} {source}" for number, source in enumerate(sources))
    return made + (f"\nIn brackets: published figures. {notes}.\n" if sources else "")


def _row(record: zoo.ModelRecord, theirs: dict[str, Any], sources: list[str]) -> list[str]:
    def published(name: str) -> str:
        return f" ({theirs[name]}{MARKS[sources.index(theirs['source'])]})" if name in theirs else ""

    cost = model_costs()[record.name]
    classes = theirs.get("classes", 400)
    parameters, multiply_adds = cost.at(classes)
    stride = f" every {cost.stride}" if cost.stride > 1 else ""
    stride = " segments" if record.options.input.segments else stride
    return [
        f"`{record.name}`",
        f"{cost.frames}{stride} × {size_text(cost.crop)}",
        str(classes),
        f"{parameters / 1e6:.2f}{published('parameters')}",
        f"{multiply_adds / 1e9:.{2 if multiply_adds >= 1e9 else 3}f}{published('multiply_adds')}",
    ]


def main(argv: list[str] | None = None) -> int:
    """Count, write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", action="store_true", help="count every network anew")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    given = parser.parse_args(argv)
    if given.count:
        write_json(FILE, {record.name: count(record) for record in zoo.records()})
        model_costs.cache_clear()
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    pages = sorted(PAGES.glob("*.md"))
    return int(update(pages, lambda words: table(words.split(), published), check=given.check) > 0)


if __name__ == "__main__":
    sys.exit(main())
