"""The prompts, rendered from the templates in ``bank/prompts``.

Text from a model or a persona enters a judge prompt only through the filter `quoted`: a JSON string whose braces are
escaped, so that a verdict hidden in a line is neither JSON in the prompt nor JSON when a judge repeats it.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import jinja2

from persona_tasks.personas import BANK, Persona, Scenario

PROMPTS = BANK / "prompts"


def quoted(text: str) -> str:
    """`text` as a JSON string without any brace in it.

    >>> quoted('He said "{}".')
    '"He said \\\\"\\\\u007b\\\\u007d\\\\"."'
    """
    return json.dumps(text, ensure_ascii=False).replace("{", "\\u007b").replace("}", "\\u007d")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PROMPTS),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text for a model, not HTML
        trim_blocks=False,
    )
    environment.filters["quoted"] = quoted
    return environment


def render(template: str, /, **values: Any) -> str:
    """Render ``bank/prompts/<template>.jinja``; a value that the template needs and does not get is an error."""
    return _environment().get_template(f"{template}.jinja").render(**values).strip()


def persona_text(persona: Persona) -> str:
    """The person as the simulator is told and as the judge reads it: description, facts and manner."""
    return render("persona", persona=persona)


def simulator_prompt(persona: Persona, scenario: Scenario) -> str:
    """The simulator's system message: who it is, where, and how long an answer is."""
    return render(
        "simulator",
        name=persona.name,
        role=scenario.simulator_role,
        setting=scenario.setting,
        persona_text=persona_text(persona),
    )


@cache
def prompts_hash() -> str:
    """Short sha256 of all templates: scores made with different prompts are told apart by it."""
    digest = hashlib.sha256()
    for file in sorted(PROMPTS.glob("*.jinja")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
