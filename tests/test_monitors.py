"""The monitors, on lines whose value can be counted by hand."""

import pytest

from persona_tasks.monitors import MONITORS, is_role_flip, monitor
from persona_tasks.transcript import Transcript, Turn


def dialogue(*lines: str, persona: str = "You are Ada.") -> Transcript:
    return Transcript(
        id="d", persona_id="p", persona_text=persona, turns=[Turn(partner="And you?", line=line) for line in lines]
    )


def test_line_length_counts_words_and_empty_lines() -> None:
    lengths = monitor(dialogue("I'm a ten-year-old.", "", "No -- really!"))["line_length"]
    assert lengths == pytest.approx((3 + 0 + 2) / 3)


def test_distinct_2_is_over_the_dialogue_and_not_across_lines() -> None:
    # a b | b c | b c -> 3 grams of which "b c" twice; across lines there would be "b b" too
    assert monitor(dialogue("a b c", "B, C!"))["distinct_2"] == pytest.approx(2 / 3)


def test_distinct_2_falls_with_length_alone() -> None:
    text = "the cat sat on the mat and the dog sat on the cat"
    assert monitor(dialogue(text))["distinct_2"] > monitor(dialogue(text, text))["distinct_2"]


def test_self_repetition_looks_back_only() -> None:
    # line 2 has the 3-grams "b c d" (said before) and "c d x" (new)
    assert monitor(dialogue("a b c d", "b c d x"))["self_repetition"] == pytest.approx(1 / 2)
    assert monitor(dialogue("a b c a b c a"))["self_repetition"] == 0


def test_self_repetition_sees_short_lines() -> None:
    assert monitor(dialogue(*["I'm fine."] * 10))["self_repetition"] == 1
    assert monitor(dialogue("", "Fine.", "", "Fine.", "Not fine."))["self_repetition"] == pytest.approx(1 / 2)


def test_persona_copying() -> None:
    persona = "You are a nurse from Leeds."
    assert monitor(dialogue("I am a nurse from Leeds", persona=persona))["persona_copying"] == pytest.approx(2 / 4)
    assert monitor(dialogue("A nurse.", "I nurse people", persona=persona))["persona_copying"] == 0


@pytest.mark.parametrize("empty", [dialogue(), dialogue(""), dialogue("", "  "), dialogue("?!", persona="")])
def test_nothing_said_is_zero_everywhere(empty: Transcript) -> None:
    assert monitor(empty) == dict.fromkeys(
        ("line_length", "distinct_2", "self_repetition", "persona_copying", "role_flips"), 0.0
    )


def test_keys_are_fixed() -> None:
    assert list(monitor(dialogue("Hello."))) == list(MONITORS)


def test_role_flips_is_a_rate_of_lines() -> None:
    assert monitor(dialogue("How can I help you?", "I'm sad.", "", "Go away."))["role_flips"] == pytest.approx(1 / 4)


FLIPS = [
    "How can I help you today?",
    "Hello! How may I assist you?",
    "As an AI, I don't have feelings.",
    "as an AI language model I cannot do that",
    "As a large language model, I have no body.",
    "I’m an AI language model.",
    "I am just a chatbot and cannot feel pain.",
    "I'm an AI assistant designed to be helpful.",
    "I'm a virtual assistant here for you.",
    "I was trained by OpenAI.",
    "I don't have personal experiences or emotions, but I can listen.",
    "Thank you for contacting us! We will be with you shortly.",
    "Thanks for calling Northwind customer service.",
    "Is there anything else I can help you with?",
    "Don't worry, I'm here to help!",
    "I'd be happy to assist you with that.",
    "Please let me know if you have any other questions.",
    "We apologize for the inconvenience.",
    "I'm so sorry for any inconvenience this has caused.",
    "Sure, let me pull up your account.",
    "Could you please provide your order number?",
    "As your therapist, I think you should rest.",
    "I'm your new tutor.",
    "What brings you to therapy?",
    "Therapist: And how do you feel?\nPatient: Bad.",
    "I feel bad.\nTherapist: Tell me more.",
    "**Assistant:** Of course.",
    '"How can I help you today?"',
]

PEOPLE = [
    "My brother works in AI.",
    "How can I help my mum?",
    "How can I help you understand that I am not okay?",
    "As an AI researcher, I spend my days reading.",
    "I'm an AI engineer in Leeds.",
    "I am a chatbot developer, of all things.",
    "I'm not an AI, if that's what you mean.",
    "Are you a chatbot? I want to talk to a person.",
    "Do you think I'm a bot?",
    "I don't have feelings for him any more.",
    "I don't have personal experience with that airline.",
    "I was trained as a nurse.",
    "I'm here to help my sister move.",
    "I'd be happy to help my neighbour with that.",
    "Thank you for calling me back.",
    "Thank you for calling us back so quickly.",
    "Thanks for contacting the courier.",
    "Thank you for helping me.",
    "Nobody could help me. They just apologize for the inconvenience and hang up.",
    'Your colleague said "how can I help you today" and then hung up on me.',
    "Every time it is “thank you for contacting us” and nothing happens, and nobody rings me.",
    "Can you check my account, please? My order number is 4711.",
    "Could you give me your name?",
    "Is there anything else I can do?",
    "As your patient, I would like a second opinion.",
    "I'm your student, remember?",
    "My therapist said: breathe.",
    "The teacher: she never listens.",
    "My assistant here in the office forgot it.",
    "",
]


@pytest.mark.parametrize("line", FLIPS)
def test_role_flip_found(line: str) -> None:
    assert is_role_flip(line)


@pytest.mark.parametrize("line", PEOPLE)
def test_people_are_not_role_flips(line: str) -> None:
    assert not is_role_flip(line)
