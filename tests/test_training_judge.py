"""Training a judge: what it learns from, shared prefixes, and a run on a tiny model that is interrupted and resumed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_tasks.calibration import load_items
from persona_tasks.embedded.answers import engine_answers
from persona_tasks.embedded.chat import Chat
from persona_tasks.embedded.engine import Engine
from persona_tasks.embedded.guided import possible_replies
from persona_tasks.embedded.weights import known, load_model
from persona_tasks.personas import load_bank
from persona_tasks.protocol.asks import Chosen
from persona_tasks.protocol.judging import judge
from persona_tasks.protocol.verdicts import LINE_DRIFTS
from tests.tiny import tiny_model_folder, tiny_tokenizer
from training import recipe as common
from training.judge import Groups, JudgeTrainer, Recipe, log_odds_of, train
from training.judge_data import balanced, example_of, fingerprint, half_of, set_name, training_items
from training.probe import begin_with_probe
from training.shared_prefix import Backbone, Group, group


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path, max_position_embeddings=16384)


def test_halves_share_no_persona_and_no_test_persona_is_learned_from() -> None:
    even, odd = ({item.transcript.persona_id for item, _ in training_items(half, 0, 1)} for half in ("even", "odd"))
    assert even and odd and not even & odd
    assert {load_bank().persona(name).split for name in even | odd} == {"train"}
    assert len(half_of(load_bank().select("all", "train"), "all")) == 96


def test_derived_lines_say_the_right_option_or_another() -> None:
    derived = [item for item, context in training_items("even", 0, 2) if item.set == "derived" and context]
    assert derived
    for item in derived:
        questions = {q.question: q for q in load_bank().persona(item.transcript.persona_id).questions}
        [turn] = item.transcript.turns
        right = questions[turn.partner].options[questions[turn.partner].answer]
        assert (turn.line == right) == (item.label == "consistent")


def test_what_is_learned_is_what_the_judge_is_asked(folder: Path) -> None:
    """The prompts, tokens and meaning of an example are those of the embedded judge at work."""
    engine = Engine.load(str(folder), "float32")
    answer = engine_answers(engine)
    for item in [i for i in load_items(["calibration"], "dev") if not i.conflicts or i.metric == "line_to_line"][::37]:
        [ask] = next(judge(item.transcript, [item.metric], turns=[item.turn]))
        example = example_of(item, engine.chat)
        first = example.choices[0]
        assert ask.schema is not None
        assert example.ids[: len(engine.chat.ids([m._asdict() for m in ask.messages]))] == tuple(
            engine.chat.ids([m._asdict() for m in ask.messages])
        )
        [said] = answer([ask])
        assert isinstance(said, Chosen)
        [chosen] = group([example.ids], ["x"], first=[first.place])
        [hidden] = Backbone(engine_model(folder).model).hidden_at(chosen, [[first.place]])
        logits = engine_model(folder).lm_head.weight[list(first.allowed)] @ hidden[0]
        p = float(logits.softmax(-1)[torch.tensor(example.contradicts)].sum())
        harmless = [text for text in said.weights if '"consistent"' in text or "[]" in text]
        assert p == pytest.approx(1 - sum(said.weights[text] for text in harmless), abs=1e-4)
        assert sum(first.target) == pytest.approx(1.0)
        right = {c for c, share in zip(example.contradicts, first.target, strict=True) if share}
        assert right == {item.label == "contradicts"}


def engine_model(folder: Path) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_a_conflict_is_learned_down_to_the_line() -> None:
    chat = Chat(tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    item = next(item for item in load_items(["calibration"], "train") if len(item.conflicts) == 1)
    *_, last = example_of(item, chat).choices
    [share] = [s for s in last.target if s]
    token = last.allowed[last.target.index(share)]
    assert share == 1.0 and chat.tokenizer.decode([token]).strip(" [") == str(item.conflicts[0])


def test_both_verdicts_weigh_alike(folder: Path) -> None:
    chat = Chat(AutoTokenizer.from_pretrained(folder))
    items = [item for item in load_items(["on_policy"], "dev") if item.metric == "prompt_to_line"][:60]
    examples = balanced([example_of(item, chat) for item in items])
    totals = dict.fromkeys(("consistent", "contradicts"), 0.0)
    for example in examples:
        totals[example.item.label] += example.weight
    assert totals["consistent"] == pytest.approx(totals["contradicts"])


def test_sets_weigh_as_the_recipe_says(folder: Path) -> None:
    weights = {"rewritten/prompt_to_line": 0.0, "on_policy/prompt_to_line": 2.0}
    everything, some = training_items("even", 0, 0), training_items("even", 0, 0, weights)
    assert {set_name(item) for item, _ in everything} - {set_name(item) for item, _ in some} == {
        "rewritten/prompt_to_line"
    }
    chat = Chat(AutoTokenizer.from_pretrained(folder))
    examples = [example_of(item, chat) for item, _ in some[:40] + some[-40:]]
    for plain, weighed in zip(balanced(examples), balanced(examples, weights), strict=True):
        assert weighed.weight == plain.weight * weights.get(set_name(plain.item), 1.0)
    with pytest.raises(ValidationError, match="weights"):
        Recipe.model_validate({"weights": {"rewriten/prompt_to_line": 0}})


def test_lines_are_ranked_within_a_set_only(folder: Path) -> None:
    """Who wrote a line tells sets apart, and must not be learned from."""
    model, chat = engine_model(folder), Chat(AutoTokenizer.from_pretrained(folder))
    items = [item for item in load_items(["calibration"], "train") if item.metric == "prompt_to_line"][:8]
    assert {item.label for item in items} == {"consistent", "contradicts"}

    def ranked(sets: dict[str, str], ranking: float) -> float:
        examples = [example_of(replace(item, set=sets[item.label]), chat) for item in items]
        [batch] = Groups(examples, 100_000).labelled()
        trainer = JudgeTrainer.__new__(JudgeTrainer)
        trainer.detail, trainer.ranking, trainer.backbone = 0.0, ranking, Backbone(model.model)
        return float(trainer.compute_loss(model, {"group": batch[0], "examples": batch[1]}))

    apart = {"consistent": "rewritten", "contradicts": "on_policy"}
    together = {"consistent": "on_policy", "contradicts": "on_policy"}
    assert ranked(apart, 1.0) == pytest.approx(ranked(apart, 0.0))
    assert ranked(together, 1.0) > ranked(together, 0.0) + 0.1


@pytest.mark.parametrize("name", ["judge-135m", "judge-135m-audit"])
def test_the_shipped_judges_learned_from_what_is_here_now(name: str) -> None:
    entry = known(name)
    assert entry is not None and entry.recipe is not None and entry.training is not None
    recipe = common.load_recipe(Recipe, Path(entry.recipe.path))
    items = training_items(recipe.half, recipe.seed, recipe.derived, recipe.weights)
    assert fingerprint(items) == entry.training.data_sha256
    assert fingerprint(items[1:]) != entry.training.data_sha256


def at_ends(model: AutoModelForCausalLM, batch: Group, learns: int = 0) -> list[torch.Tensor]:
    places = [[len(batch.prefix) + len(s)] for s in batch.suffixes]
    return [state[0] for state in Backbone(model.model, learns).hidden_at(batch, places)]


@pytest.mark.parametrize("learns", [0, 1])
@pytest.mark.parametrize("limit", [40, 100, 10_000])
def test_a_shared_prefix_changes_nothing(folder: Path, limit: int, learns: int) -> None:
    model = engine_model(folder)
    rng = torch.Generator().manual_seed(0)
    start = tuple(torch.randint(5, 200, (20,), generator=rng).tolist())
    prompts = [start + tuple(torch.randint(5, 200, (n,), generator=rng).tolist()) for n in (1, 7, 3, 12)] + [(7, 8, 9)]
    groups = group(prompts, ["a", "a", "a", "a", "b"], limit)
    assert sorted(number for g in groups for number in g.prompts) == [0, 1, 2, 3, 4]
    for g in groups:
        found = at_ends(model, g, learns)
        for number, state in zip(g.prompts, found, strict=True):
            alone = model.model(input_ids=torch.tensor([prompts[number]])).last_hidden_state[0, -1]
            assert torch.allclose(state, alone, atol=1e-4)
    if limit == 10_000:
        assert [len(g.prefix) for g in groups] == [20, 2]


def test_gradients_flow_through_the_shared_prefix(folder: Path) -> None:
    model = engine_model(folder)
    prompts = [(5, 6, 7, 8), (5, 6, 7, 9, 10)]
    torch.cat(at_ends(model, group(prompts, ["a", "a"])[0])).sum().backward()
    together = model.model.layers[0].self_attn.v_proj.weight.grad.clone()
    model.zero_grad()
    sum(model.model(input_ids=torch.tensor([p])).last_hidden_state[0, -1].sum() for p in prompts).backward()
    assert torch.allclose(together, model.model.layers[0].self_attn.v_proj.weight.grad, atol=1e-4)


def test_layers_that_do_not_learn_are_computed_once(folder: Path) -> None:
    model = engine_model(folder)
    assert len(model.model.layers) == 2
    [batch] = group([(5, 6, 7, 8), (5, 6, 7, 9, 10)], ["a", "a"])
    backbone, calls = Backbone(model.model, 1), Counter[int]()
    for layer in (0, 1):
        model.model.layers[layer].register_forward_hook(lambda *_, layer=layer: calls.update([layer]))
    first, again = (backbone.hidden_at(batch, [[4], [5]]) for _ in range(2))
    assert calls == {0: 2, 1: 4} and all(map(torch.equal, first, again))  # prefix and suffixes
    model.model.layers[1].self_attn.v_proj.weight.data *= 2
    assert not any(map(torch.equal, first, backbone.hidden_at(batch, [[4], [5]])))
    torch.cat(backbone.hidden_at(batch, [[4], [5]])).sum().backward()
    learned, kept = (model.model.layers[layer].self_attn.v_proj.weight.grad for layer in (1, 0))
    assert learned is not None and kept is None


def test_an_adapter_that_begins_with_a_probe_says_what_the_probe_says(tmp_path: Path, folder: Path) -> None:
    model = engine_model(folder)
    chat = Chat(AutoTokenizer.from_pretrained(folder))
    items = load_items(["calibration"], "train")[:60] + load_items(["calibration"], "train")[-60:]
    groups = Groups(balanced([example_of(item, chat) for item in items]), 4096)
    assert {example.item.metric for example in groups.examples} == {"prompt_to_line", "line_to_line"}
    adapted = get_peft_model(model, common.lora(4, 1, 2))
    backbone = Backbone(model.model, 1)
    odds = partial(log_odds_of, adapted, backbone)

    def said() -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for batch, examples in groups.labelled():
            for example, value in zip(examples, odds(batch, examples), strict=True):
                found.setdefault(example.item.metric, []).append((example.item.label == "contradicts", value))
        return found

    begin_with_probe(adapted, backbone, groups.labelled(), 10.0, odds)
    after = said()
    for pairs in after.values():
        guilty = [value for label, value in pairs if label]
        innocent = [value for label, value in pairs if not label]
        assert min(len(guilty), len(innocent)) >= 10
        right = sum(value > 0 for value in guilty) + sum(value < 0 for value in innocent)
        assert right / len(pairs) > 0.85  # a tiny model's states tell 60 items apart, and the verdicts are on scale
    some = groups.labelled()[::5]
    expected = [odds(batch, examples) for batch, examples in some]
    common.save_adapter(adapted, str(folder), tmp_path / "adapter")
    merged, _ = load_model(str(tmp_path / "adapter"), "float32")
    alone = partial(log_odds_of, merged, Backbone(merged.model))
    for (batch, examples), values in zip(some, expected, strict=True):
        assert alone(batch, examples) == pytest.approx(values, abs=0.2)


def test_a_recipe_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        Recipe.model_validate({"learning_rat": 1})
    with pytest.raises(ValidationError, match="rank must be 2"):
        Recipe.model_validate({"probe": 0.1, "rank": 1})


def test_a_line_has_a_verdict_and_a_named_drift() -> None:
    item = load_items(["calibration"], "dev")[0]
    [ask] = next(judge(item.transcript, [item.metric]))
    assert ask.schema is not None
    assert len(possible_replies(ask.schema.model_json_schema()) or []) == 2 * (1 + len(LINE_DRIFTS))


def test_a_drift_is_learned_down_to_its_name() -> None:
    chat = Chat(tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    items = [i for i in load_items(["calibration"], "train") if i.metric == "prompt_to_line"]
    for item in items[:200]:
        example = example_of(item, chat)
        said = [choice.allowed[choice.target.index(1.0)] for choice in example.choices]
        assert all(sum(choice.target) == pytest.approx(1) for choice in example.choices)
        reply = chat.tokenizer.decode([*example.ids[example.choices[0].place :], said[-1]])
        if item.label == "consistent":
            assert len(said) == 1
        else:
            rest = json.dumps({"verdict": item.label, "drift": item.kind})
            assert rest.replace(" ", "").find(reply.replace(" ", "")) > 0, (reply, rest)


def test_an_interrupted_run_resumes_to_the_same_adapter(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [i for i in load_items(["calibration"], "train") if i.transcript.persona_id == "chat-train-01"]
    monkeypatch.setattr("training.judge.training_items", lambda *_: [(item, False) for item in chosen])
    monkeypatch.setattr("training.judge.load_items", lambda split: chosen)
    recipe = Recipe(base=str(folder), epochs=2, learning_rate=0.01, rank=4, groups_per_step=1, tokens=8000)
    whole = train(recipe, made(tmp_path / "whole"), resume=False)

    class Stopped(Exception):
        pass

    def interrupt(*_: object, **__: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("training.judge.Validation.on_epoch_begin", interrupt_after(1, interrupt), raising=False)
        train(recipe, made(tmp_path / "parts"), resume=False)
    again = train(recipe, tmp_path / "parts", resume=True)
    assert again == whole
    files = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    assert not list((tmp_path / "whole" / "adapter").glob("*.bin"))
    log = (tmp_path / "whole" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1.0, 2.0]
    model = PeftModel.from_pretrained(engine_model(folder), str(tmp_path / "whole" / "adapter"))
    assert model.peft_config["default"].r == 4


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def interrupt_after(epochs: int, act: object) -> object:
    seen = []

    def hook(*arguments: object, **others: object) -> None:
        seen.append(1)
        if len(seen) > epochs:
            act()  # type: ignore[operator]

    return hook
