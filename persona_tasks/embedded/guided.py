"""Replies of a given form from a model too small to write JSON: it only chooses among the replies that there can be.

A judge's reply is a JSON object with a free reason and one field of few values. All of them are written out, with an
empty reason, and the model is asked for a token wherever they differ: once for a verdict, where it chooses between
"consistent" and "contradicts". Of several lines in conflict it can name one.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from itertools import product
from typing import Any

from persona_tasks.embedded.request import Completion, Request
from persona_tasks.protocol.asks import Chosen

Choice = Generator[Request, Completion, Chosen]


def possible_replies(schema: Mapping[str, Any]) -> list[str] | None:
    """Every reply that a JSON schema allows, free texts left empty and lists no longer than one; None if they are many.

    >>> possible_replies({"properties": {"reason": {"type": "string"}, "ok": {"enum": ["yes", "no"]}}})
    ['{"reason": "", "ok": "yes"}', '{"reason": "", "ok": "no"}']
    """
    fields: list[list[Any]] = []
    for field in schema.get("properties", {}).values():
        values = (field.get("items") or {}).get("enum")
        if field.get("enum"):
            fields.append(list(field["enum"]))
        elif field.get("type") == "string":
            fields.append([""])
        elif field.get("type") == "array" and values:
            fields.append([[], *([value] for value in values)])
        else:
            return None
    names = list(schema.get("properties", {}))
    return [json.dumps(dict(zip(names, values, strict=True))) for values in product(*fields)] or None


def branch(replies: Mapping[str, Sequence[int]]) -> tuple[Sequence[int], dict[int, list[str]]]:
    """Where replies part: the tokens that they share up to there, and the replies that go on with each next token.

    Args:
        replies: Two or more, with their token ids.
    """
    place = next(place for place, ids in enumerate(zip(*replies.values(), strict=False)) if len(set(ids)) > 1)
    groups: dict[int, list[str]] = {}
    for reply, ids in replies.items():
        groups.setdefault(ids[place], []).append(reply)
    return next(iter(replies.values()))[:place], groups


def choose(prompt: Sequence[int], replies: Sequence[str], tokenizer: Any) -> Choice:
    """Ask for the next token wherever the replies that are left differ, until one is left.

    Args:
        prompt: Ids of the prompt, up to where the reply begins.
        replies: All possible replies.
        tokenizer: The model's.

    Yields:
        Requests for one token out of a few; send the completion.

    Returns:
        The reply chosen, with the probability of each. Of replies that fell out together only their sum is known.
    """
    left = {reply: tokenizer(reply, add_special_tokens=False)["input_ids"] for reply in replies}
    weights: dict[str, float] = {}
    mass = 1.0
    while len(left) > 1:
        certain, groups = branch(left)
        completion = yield Request([*prompt, *certain], max_tokens=1, allowed=sorted(groups))
        for token, probability in zip(sorted(groups), completion.among, strict=True):
            weights[groups[token][0]] = mass * probability
        chosen = groups[completion.ids[0]]
        mass = weights.pop(chosen[0])
        left = {reply: left[reply] for reply in chosen}
    [reply] = left
    return Chosen(reply, weights | {reply: mass})
