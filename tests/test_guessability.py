"""Without the persona the embedded model must stay near chance on the bank's questions."""

import pytest

from benchmarks.guessability import Reader, accuracy
from persona_tasks.personas import load_bank


@pytest.mark.embedded
def test_questions_are_not_given_away_by_their_wording():
    personas = load_bank().select(split="test")[:6]
    right = accuracy(Reader(), personas, with_persona=False)
    share = sum(right) / len(right)
    assert share < 0.34, f"{share:.2f} of {len(right)} questions are guessed; chance is 0.20"
