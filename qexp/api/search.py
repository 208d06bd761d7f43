"""The function `qexp.within`: the network that holds limits, and what was tried to find it."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qexp.api.comparison import WIDE, Comparison, comparison
from qexp.api.compressed import CompressedNetwork
from qexp.api.nodes import call_text, images_of, modules_of, network_of
from qexp.api.options import listed, literal, of_a_method, words_of
from qexp.api.running import run, told_alone
from qexp.jobs.given import Given
from qexp.report.render import html_table, markdown, rich_table
from qexp.types import UserError
from qexp.within_limits.answer import Answer


@dataclass(frozen=True, repr=False)
class Found:
    """What a search within limits found. `print` shows it as text, and a notebook as a table.

    Attributes:
        network: The network that holds all limits and is the best in what was minimised. None if nothing holds them.
        answer: The answer in sentences, what each limit came to, and all that was tried.
        trials: The runs of the search, in their order, and that on test images as the last one.

    Example:
        >>> found = qexp.within(network, "pictures", limits={"drop": 0.5, "size_mb": 1}, minimise="latency_ms")
        >>> found.network.deploy("dist")
    """

    network: CompressedNetwork | None
    answer: Answer
    trials: Comparison

    def __str__(self) -> str:
        out = Console(file=io.StringIO(), width=WIDE)
        for line in self.answer.lines:
            out.print(line, highlight=False, markup=False)
        out.print(rich_table(self.answer.table(), WIDE))
        return str(out.file.getvalue())  # type: ignore[attr-defined]

    __repr__ = __str__

    def _repr_html_(self) -> str:
        first, *rest = map(html.escape, self.answer.lines)
        return f"<p><b>{first}</b><br>{'<br>'.join(rest)}</p>{html_table(self.answer.table())}"

    def _repr_markdown_(self) -> str:
        return "\n\n".join([*self.answer.lines, markdown(self.answer.table())])


@told_alone
def within(
    network: Any, data: Any, *, limits: Mapping[str, Any], minimise: str | Sequence[str] = "latency_ms",
    name: str | None = None, overrides: Sequence[str] = (), **options: Any,
) -> Found:  # fmt: skip
    """Find the network that holds limits, as `compress.py experiment=within` does.

    Cheap ways are tried first, and then what the limits still need, as far as the minutes last. The same call goes on
    where an earlier one was interrupted, and with other limits from what is known.

    Args:
        network: A network as `compress` takes it. Validation images judge the trials. Only weights of `qexp.train` are
            known not to have been trained on them; for others, give `validation_seen="accept"`, which the answer says.
        data: Images as `compress` takes them, which must have a training part: some of it validates.
        limits: Limits by name: `drop` (points of top-1), `latency_ms`, `size_mb`, `memory_mb`, `macs_m`; what may be
            used: `bits`, `engines`, `methods`, `training`; and `minutes` of search.
        minimise: What counts among networks that hold: the name of a limit, or a list of them.
        name: What tables call the network.
        overrides: Further options as on the command line.
        **options: Options of the images and of the command, such as `batch_size=1` or `recipe={"epochs": 4}`, with the
            names and values that they have in conf/.

    Returns:
        What was found.

    Raises:
        UserError: The limits make no sense, or the network, the images or an option is wrong.

    Example:
        >>> found = qexp.within(trained, "pictures", limits={"drop": 1, "minutes": 10}, minimise="size_mb")
        >>> print(found.answer.sentence)
        static int8 on openvino holds all limits with the least size_mb (size_mb 0.32), after 9 trials in 4.1 minutes.
    """
    if not isinstance(limits, Mapping):
        raise UserError(f"limits={limits!r} must be a dict, such as {{'drop': 0.5, 'size_mb': 5}}.")
    call = call_text("within", {"network": network, "data": data, "limits": limits, "minimise": minimise, **options})
    chosen = network_of(network, name)
    nodes, images = images_of(data)
    search = {"experiment": "within", **{f"limits.{limit}": literal(value, limit) for limit, value in limits.items()}}
    search["minimise"] = literal([minimise] if isinstance(minimise, str) else [*minimise], "minimise")
    words, more = words_of("compress", {**chosen.words, **nodes}, options, overrides)
    all_words = [*listed({**chosen.words, **nodes, **search, **words}), *more]
    folder, _ = run("compress", all_words, Given(modules_of([chosen]), images, call))
    answer, trials = Answer.read(folder), comparison(folder)
    assert answer
    small = None
    if answer.artifact:
        trial = dict(word.split("=", 1) for word in answer.words)
        small = CompressedNetwork(
            network=chosen, artifacts={trials.records[-1].params["engine"]: Path(answer.artifact)}, notes={},
            method={key: value for key, value in trial.items() if of_a_method(key)}, shared={**nodes, **words},
            overrides=tuple(more), images=images,
        )  # fmt: skip
    return Found(small, answer, trials)
