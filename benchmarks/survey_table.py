"""Writes the results of survey.py as a page of Markdown."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from omegaconf import DictConfig

from qexp.report.render import NONE, Table, markdown

Result = dict[str, Any]
SHOWN = {"eager": "reference", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch"}
PAGE = """# Networks that were tried

What becomes of networks that others wrote: {networks} networks, each with its default options. This page is written by
`benchmarks/survey.py`.

Weights are random. Before anything else, batch norms see {images} pretend images, and parameters that begin at next to
nothing, which would hide what goes wrong behind them, get ordinary values: scales become 1 (those of layers at 1e-6,
those of the last norm of a residual branch at 0), and matrices random numbers. Ranges are found on
{calibration_images} images. Decibels say how much louder the fp32 network's logits are than the error of a method on an
engine, over {images} other images. They compare methods and engines with each other. What a trained network loses is
another matter: its activations have other ranges.

The reference is the artifact's own graph, run by torch. The other engines' results were compared with it as in every
run, so that an engine that computes something else counts as failed. {px} is the side of an image in pixels, {share}
the share of multiply-accumulates that compute in integers, and {seconds} the seconds that all cells of a row took on
one thread, making the network excepted, while the machine may have done other things.

## How many finish

{counts}

## Each network

{table}

Machine: {machine}
"""


def survey_table(results: list[Result], options: DictConfig, machine: str) -> str:
    """The page: how many finish, one row of figures for each network, and the reasons why others have none.

    Args:
        results: The newest result of each network, method and engine, in the order of the rows.
        options: The options of the survey.
        machine: The line that describes the machine.
    """
    networks = list(dict.fromkeys(result["network"] for result in results))
    return PAGE.format(
        networks=len(networks), images=options.images, calibration_images=options.calibration_images,
        px="`px`", share="`int8 %`", seconds="`s`", machine=machine,
        counts=markdown(counts(results)), table=markdown(figures(networks, results)),
    )  # fmt: skip


def _columns(results: list[Result]) -> list[tuple[str, str]]:
    """Methods and engines, in the order in which they came."""
    return list(dict.fromkeys((result["method"], result["engine"]) for result in results))


def counts(results: list[Result]) -> Table:
    """How many networks of each library finish, by method and engine."""
    finished, tried = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for result in results:
        cell = (result["network"].partition("/")[0], result["method"], result["engine"])
        tried[cell] += 1
        finished[cell] += result["status"] == "finished"
    libraries = list(dict.fromkeys(library for library, _, _ in tried))
    rows = [
        (
            method,
            SHOWN.get(engine, engine),
            *(_share(finished, tried, library, method, engine) for library in libraries),
        )
        for method, engine in _columns(results)
    ]
    return Table(("method", "engine", *libraries), tuple(rows), left=frozenset({0, 1}))


def _share(finished: Counter[tuple[str, ...]], tried: Counter[tuple[str, ...]], *cell: str) -> str:
    return f"{finished[cell]} of {tried[cell]}" if tried[cell] else NONE


def figures(networks: list[str], results: list[Result]) -> Table:
    """One row for each network. Notes below the table give the reasons, and what no network has."""
    cells = {(r["network"], r["method"], r["engine"]): r for r in results}
    reasons: dict[str, int] = {}
    columns: list[tuple[str, str]] = []
    notes: list[str] = []
    for method, engine in _columns(results):
        column = [cells.get((network, method, engine)) for network in networks]
        unsupported = {r["reason"] for r in column if r and r["status"] == "unsupported"}
        if len(unsupported) == 1 and all(r is None or r["status"] == "unsupported" for r in column):
            notes.append(f"`{method}` on {SHOWN.get(engine, engine)} is unsupported: {unsupported.pop()}.")
            continue
        if not any(known == method for known, _ in columns):
            columns.append((method, ""))  # the column of its share of integers
        columns.append((method, engine))
    columns = [c for c in columns if c[1] or c[0] != "half"]
    rows = []
    for network in networks:
        own = [result for result in results if result["network"] == network]
        shown = [_figure(own, cells, network, column, reasons) for column in columns]
        rows.append((network, str(own[0]["size"]), *shown, f"{sum(r['seconds'] for r in own):.0f}"))
    titles = [f"{method} {SHOWN.get(engine, engine) + ', dB' if engine else 'int8 %'}" for method, engine in columns]
    notes += [f"{number}. {reason}" for reason, number in reasons.items()]
    return Table(("network", "px", *titles, "s"), tuple(rows), left=frozenset({0}), notes=tuple(notes))


def _figure(
    own: list[Result], cells: dict[tuple[str, str, str], Result], network: str, column: tuple[str, str],
    reasons: dict[str, int],
) -> str:  # fmt: skip
    """The text of a cell. A reason that is not among `reasons` yet gets the next number."""
    method, engine = column
    if not engine:
        shares = [r["int8_share"] for r in own if r["method"] == method and r["status"] == "finished"]
        return f"{100 * shares[0]:.0f}" if shares else NONE
    result = cells.get((network, method, engine))
    if result is None:
        return NONE
    if result["status"] == "finished":
        return f"{result['signal_to_noise_db']:.1f}"
    reason = re.sub(r"\s+", " ", result["reason"])
    return f"{result['status']} ({reasons.setdefault(reason, len(reasons) + 1)})"
