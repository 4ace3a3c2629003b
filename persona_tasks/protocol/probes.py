"""Reading the setting `probes`, which users of every harness write the same way."""

from __future__ import annotations

from collections.abc import Sequence


def probe_turns(probes: str | int | Sequence[int | str], turns: int) -> list[int] | None:
    """The turns after which questions are asked; None for the default, [] for never.

    >>> probe_turns("1,4,8", 8), probe_turns([2], 8), probe_turns("none", 8), probe_turns("default", 8)
    ([1, 4, 8], [2], [], None)

    Raises:
        ValueError: A turn is not a number from 1 to `turns`.
    """
    if probes == "default":
        return None
    if not isinstance(probes, int) and (probes == "none" or not probes):
        return []
    wanted = str(probes).split(",") if isinstance(probes, (str, int)) else probes
    try:
        numbers = sorted({int(turn) for turn in wanted})
    except ValueError:
        raise ValueError(f"probes={probes!r}: give turns such as 1,4,8, or `default`, or `none`") from None
    if numbers[0] < 1 or numbers[-1] > turns:
        raise ValueError(f"probes={probes!r}: the turns must lie between 1 and {turns}")
    return numbers
