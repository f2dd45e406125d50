"""Results of benchmarks: kept in ``results.json``, shown in a page, compared with older ones."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

HEADINGS = ("work", "against", "ours", "theirs", "ratio", "target", "floor", "difference")


def read(path: Path) -> dict[str, Any]:
    """The machine and the comparisons in a file."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def take(topic: str, found: Any, machine: Record, path: Path, page: Path) -> None:
    """Put what a topic found in place of what it found before, in the file and in the page.

    ``machine`` is where it was found: each topic keeps its own. The page shows the topics, and the
    machines, for which it has markers.
    """
    results = read(path) if path.exists() else {"machines": {}, "comparisons": []}
    results["machines"] = dict(sorted({**results["machines"], topic: machine}.items()))
    others = [one for one in results["comparisons"] if _topic(one) != topic]
    results["comparisons"] = sorted([*others, *found], key=_topic)
    write_whole(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    tables = {"machines": machines_text(results["machines"])}
    for topic in {_topic(one): None for one in results["comparisons"]}:
        tables[topic] = table(one for one in results["comparisons"] if _topic(one) == topic)
    text = page.read_text(encoding="utf-8")
    for name, body in tables.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->\n")
        if end:
            text = "".join([before, start, body, end, after])
    write_whole(page, text)


def machines_text(machines: Mapping[str, Record]) -> str:
    """The machines as lists, each under the topics that were timed on it."""
    kinds: list[tuple[Record, list[str]]] = []
    for topic, machine in machines.items():
        same = next((topics for one, topics in kinds if one == machine), None)
        if same is None:
            kinds.append((machine, [topic]))
        else:
            same.append(topic)
    return "\n".join(f"{', '.join(topics)}:\n\n{_machine_text(one)}" for one, topics in kinds)


def _machine_text(machine: Record) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    rates = "; ".join(
        f"{name}: {value if isinstance(value, str) else format(value, 'g')}"
        for name, value in machine["rates"].items()
    )
    sets = ", ".join(machine["instruction_sets"]) or "none of those that matter here"
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} used; {sets}",
        f"GPU: {machine['gpu'] or 'none'}",
        f"measured: {rates}",
        f"{machine['system']}; {versions}",
        machine["date"],
    ]
    return "".join(f"- {line}\n" for line in lines)


def table(records: Iterable[Record]) -> str:
    """Comparisons as a Markdown table without its empty columns, their notes below it."""
    records = list(records)
    cells = zip(HEADINGS, *map(_cells, records), strict=True)
    columns = [(name, "---", *values) for name, *values in cells if any(values)]
    rows = zip(*columns, strict=True)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    notes = [f"- {one['work']}: {one['note']}" for one in records if one.get("note")]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def summary(record: Record) -> str:
    """A comparison in one line."""
    if "reason" in record:
        return f"{record['name']}: skipped: {record['reason']}"
    name, _, ours, theirs, ratio, target, floor, _ = (record["name"], *_cells(record)[1:])
    told = f"{name}: {ours} against {theirs}, {ratio}"
    return told + (f" ({target})" if target else "") + (f"; floor {floor}" if floor else "")


def spread(values: list[float]) -> float:
    """Interquartile range over median; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / median


def mean_and_range(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean ± half of the range; the mean alone of one value, empty where there is none."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.1f}"


def compare(old: Mapping[str, Any], new: Mapping[str, Any], topics: Iterable[str]) -> str:
    """How our medians of two files differ, name by name: below 1 the new one takes less."""
    topics = set(topics)
    before = {one["name"]: one for one in old["comparisons"] if "reason" not in one}
    rows = []
    for one in new["comparisons"]:
        if _topic(one) not in topics or "reason" in one:
            continue
        name, now = one["name"], one["medians"]["ours"]
        if name not in before:
            rows.append((name, "", _amount(now, one["unit"]), "new"))
            continue
        was = before.pop(name)["medians"]["ours"]
        ratio = f"{now / was:.2f}" if was else "n/a"
        rows.append((name, _amount(was, one["unit"]), _amount(now, one["unit"]), ratio))
    for name, one in before.items():
        if _topic(one) in topics:
            rows.append((name, _amount(one["medians"]["ours"], one["unit"]), "", "gone"))
    rows.insert(0, ("name", "old", "new", "new/old"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def write_whole(path: Path, text: str) -> None:
    """Under a temporary name, then renamed: nothing half-written is ever there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _topic(record: Record) -> str:
    return str(record["name"]).partition(".")[0]


def _cells(record: Record) -> list[str]:
    """The row of a comparison under the headings."""
    if "reason" in record:
        return [record["work"], "", f"skipped: {record['reason']}", *[""] * (len(HEADINGS) - 3)]
    unit, faster = record["unit"], record["better"] == "faster"
    ours, theirs = (
        _amount(record["medians"][way], unit)
        + (f" ± {100 * record['spread'][way]:.0f} %" if len(record[way]) > 1 else "")
        for way in ("ours", "theirs")
    )
    target = ""
    if record["target"] is not None:
        sign, met = "≥" if faster else "≤", "met" if record["met"] else "**missed**"
        target = f"{sign} {record['target']:.3g}×, {met}"
    floor = ""
    if record["floors"]:
        name, least = max(record["floors"].items(), key=lambda one: one[1])
        away = record["medians"]["ours"] / least
        floor = f"{_amount(least, 's')} ({name}), {away:.2g}× it"
    difference = "" if record["difference"] is None else f"{record['difference']:.1e}"
    ratio = f"{record['ratio']:{'.3g' if record['ratio'] < 1000 else ',.0f'}}×"
    return [record["work"], record["against"], ours, theirs, ratio, target, floor, difference]


def _amount(value: float, unit: str) -> str:
    if unit == "MB":
        return f"{value:,.3g} MB" if value < 1000 else f"{value:,.0f} MB"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
