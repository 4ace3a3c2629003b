"""SFT, KTO, DPO and signed policy gradient: what is trained, in which direction, and that a run can be resumed."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from persona_tasks.embedded.chat import Chat
from persona_tasks.embedded.engine import Engine
from persona_tasks.personas import load_bank
from persona_tasks.protocol.limits import LINE_TOKENS
from persona_tasks.transcript import Judged, TranscriptError, append_jsonl, read_jsonl
from tests.judged import branched, judged, model_folder, tokenizer, written
from tests.tiny import CHATML
from training import dpo, kto, offline, offline_run, sft, signed
from training.offline import IGNORED, Dialogue, tokens_of
from training.recipe import RecipeError, load_recipe
from training.token_tree import token_tree

NAMES = [persona.id for persona in load_bank().select("all", "train")[:4]]
METHODS: dict[str, ModuleType] = {"sft": sft, "kto": kto, "dpo": dpo, "signed": signed}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"), initializer_range=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues of four personas, and branches of two of them."""
    parents = [judged(name, signs) for name, signs in zip(NAMES, ("+-+", "-+?", "++-", "+--"), strict=True)]
    branches = [branched(parents[0], k, 2, signs) for k, signs in enumerate(("++", "--"))]
    branches += [branched(parents[3], k, 2, signs) for k, signs in enumerate(("+-", "++"))]
    return written(tmp_path_factory.mktemp("data") / "judged.jsonl", [*parents, *branches])


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Personas of a few words, where it is not the prompt that is tested: a fifth of the time."""
    monkeypatch.setattr(offline, "simulator_prompt", lambda persona, _: f"You are {persona.name}.")


def recipe_of(method: str, folder: Path, data: Path, **settings: Any) -> Any:
    fixed = {"base": str(folder), "data": [str(data)], "learning_rate": 0.01, "rank": 4, "accumulate": 1}
    return METHODS[method].Recipe(**{**fixed, **({"batch": 2} if method == "kto" else {}), **settings})


def tokens(recipe: Any, record: Judged, template: str = CHATML) -> Dialogue:
    reader = copy.deepcopy(tokenizer())
    reader.chat_template = template
    return tokens_of(record, recipe, Chat(reader), [reader.eos_token_id], 4096)


def train(method: str, recipe: Any, out: Path, resume: bool = False) -> list[dict[str, Any]]:
    offline_run.train(recipe, out, resume, METHODS[method].rows, METHODS[method].trainer)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# What is trained


def text(ids: list[int]) -> str:
    return str(tokenizer().decode(ids))


def test_trained_tokens_are_the_consistent_lines_and_their_ends(folder: Path, data: Path) -> None:
    recipe = recipe_of("sft", folder, data)
    dialogue = tokens(recipe, judged(NAMES[0], "+-?+"))
    [row] = sft.rows(recipe, [dialogue])
    trained = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
    assert text([row["input_ids"][i] for i in trained]) == (
        f"Line 1 of {NAMES[0]}.<|im_end|>Line 4 of {NAMES[0]}.<|im_end|>"
    )
    assert all(row["labels"][i] == row["input_ids"][i] for i in trained)
    assert trained[-1] == len(row["input_ids"]) - 1  # nothing is computed after the last trained token
    for line in ("Line 2 of", "Line 3 of"):
        assert line in text(row["input_ids"])


def test_the_context_is_token_for_token_what_the_simulator_sees(folder: Path, data: Path) -> None:
    """By the asks of the protocol and the engine's own rendering."""
    from training.data import scripted

    record = judged(NAMES[0], "+-+")
    dialogue = tokens(recipe_of("sft", folder, data), record)
    chat, play = Chat(tokenizer()), scripted(load_bank().persona(NAMES[0]), 3, 0)[0]
    [ask] = next(play)
    for turn, line in enumerate(record.transcript.lines, start=1):
        assert dialogue.prompt(turn) == chat.ids([message._asdict() for message in ask.messages])
        if turn < 3:
            [ask] = play.send([line])


def test_a_line_that_was_cut_off_does_not_teach_to_stop(folder: Path, data: Path) -> None:
    lines = ["x" + " x" * LINE_TOKENS, "Short."]
    recipe = recipe_of("sft", folder, data)
    [row] = sft.rows(recipe, [tokens(recipe, judged(NAMES[0], "++", 0, lines))])
    trained = text([token for token in row["labels"] if token != IGNORED])
    assert trained.count("<|im_end|>") == 1 and trained.endswith("Short.<|im_end|>")


@pytest.mark.parametrize(("tolerate", "kept"), [(None, [1, 3, 5]), (0, [1]), (1, [1, 3]), (2, [1, 3, 5])])
def test_lines_after_too_many_contradictions_are_left_out(
    folder: Path, data: Path, tolerate: int | None, kept: list[int]
) -> None:
    recipe = recipe_of("sft", folder, data, tolerate=tolerate)
    [row] = sft.rows(recipe, [tokens(recipe, judged(NAMES[0], "+-+-+"))])
    trained = text([token for token in row["labels"] if token != IGNORED])
    assert [turn for turn in range(1, 6) if f"Line {turn} " in trained] == kept


def test_a_branch_teaches_its_own_turns_only(folder: Path, data: Path) -> None:
    recipe = recipe_of("sft", folder, data)
    child = tokens(recipe, branched(judged(NAMES[0], "+-+"), 0, 2, "++"))
    [row] = sft.rows(recipe, [child])
    assert "Line 1" not in text([token for token in row["labels"] if token != IGNORED])
    assert len(kto.rows(recipe_of("kto", folder, data), [child, tokens(recipe, judged(NAMES[1], "-"))])) == 3


def test_the_labels_of_kto_are_the_right_way_round(folder: Path, data: Path) -> None:
    recipe = recipe_of("kto", folder, data)
    made = kto.rows(recipe, [tokens(recipe, judged(NAMES[0], "+-?"))])
    assert [(text(row["completion_ids"]), row["label"]) for row in made] == [
        (f"Line 1 of {NAMES[0]}.<|im_end|>", True),
        (f"Line 2 of {NAMES[0]}.<|im_end|>", False),
    ]
    assert text(made[1]["prompt_ids"]).endswith("<|im_start|>assistant\n")


def test_neighbours_in_a_kto_batch_share_no_persona_and_few_rows_are_lost(folder: Path, data: Path) -> None:
    recipe = recipe_of("kto", folder, data)
    dialogues = [tokens(recipe, judged(name, "+-+-", seed)) for name in NAMES for seed in range(2)]
    made = kto.rows(recipe, dialogues)
    ordered = kto.batches(made, 3, seed=0)
    assert len(ordered) == len(made) - len(made) % 3
    for start in range(0, len(ordered), 3):
        group = ordered[start : start + 3]
        assert len({row["persona"] for row in group}) == 3
        assert Counter(map(str, (r["KL_completion_ids"] for r in group))) == Counter(
            map(str, (r["completion_ids"] for r in group))
        )
        assert all(row["KL_completion_ids"] != row["completion_ids"] for row in group)
    assert ordered == kto.batches(made, 3, seed=0) != kto.batches(made, 3, seed=1)
    with pytest.raises(RecipeError, match="5 rows of different personas; the data has lines of 4"):
        kto.batches(made, 5, seed=0)


def test_both_kto_labels_weigh_alike() -> None:
    assert kto.weights([{"label": True}] + [{"label": False}] * 4) == {
        "desirable_weight": 1.0,
        "undesirable_weight": 0.25,
    }


def test_dpo_pairs_the_best_segment_with_the_worst_on_the_same_prefix(folder: Path, data: Path) -> None:
    recipe = recipe_of("dpo", folder, data, level="segment")
    made = dpo.rows(recipe, [tokens(recipe, record) for record in read_jsonl(data)])
    assert len(made) == 2
    first, second = made
    assert text(first["chosen_ids"]).startswith("Branch 0 says +.") and "Branch 1 says -" in text(first["rejected_ids"])
    # of the second parent the logged turns are the worst
    assert text(second["chosen_ids"]).startswith("Branch 1") and text(second["rejected_ids"]).startswith("Line 2 of")
    for row in made:
        for side in ("chosen", "rejected"):
            own = text([t for t, own in zip(row[f"{side}_ids"], row[f"{side}_mask"], strict=True) if own])
            assert own.count("<|im_end|>") == 2 and "<|im_start|>" not in own  # two turns, and nothing of the partner's
            assert "<|im_start|>user" in text(row[f"{side}_ids"])


def test_dpo_on_lines_takes_one_line_each(folder: Path, data: Path) -> None:
    recipe = recipe_of("dpo", folder, data, level="line")
    made = dpo.rows(recipe, [tokens(recipe, record) for record in read_jsonl(data)])
    assert [text(row["chosen_ids"]) for row in made] == ["Branch 0 says +.<|im_end|>", "Branch 0 says +.<|im_end|>"]
    assert all(all(row["chosen_mask"]) and all(row["rejected_mask"]) for row in made)


def test_a_segment_with_an_unparsed_line_is_not_compared(folder: Path, data: Path) -> None:
    recipe = recipe_of("dpo", folder, data)
    parent = judged(NAMES[0], "+-+")
    pair = [tokens(recipe, parent), tokens(recipe, branched(parent, 0, 2, "+?"))]
    with pytest.raises(RecipeError, match="no pair in the data: 1 segments after 1 prefixes"):
        dpo.rows(recipe, pair)


def test_the_collator_trains_own_tokens_only() -> None:
    example = {
        "prompt_ids": [1, 2],
        "chosen_ids": [3, 4, 5, 6],
        "chosen_mask": [1, 0, 0, 1],
        "rejected_ids": [7, 8, 9],
        "rejected_mask": [1, 0, 1],
    }
    output = dpo.OwnTokens(pad_token_id=0)([example])
    assert output["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 7, 8, 9, 0]]
    assert output["completion_mask"].tolist() == [[0, 0, 1, 0, 0, 1], [0, 0, 1, 0, 1, 0]]


def test_importance_weights_by_hand() -> None:
    logps = torch.tensor([0.5, 0.001, 0.5, 0.001]).log().requires_grad_()
    rewards = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert signed.importance(logps, rewards, "varmi").tolist() == pytest.approx([1, 1, 0.5, 0.01])
    gold = signed.importance(logps, rewards, "gold")
    assert gold.tolist() == pytest.approx([0.5, 0.01, 0.5, 0.01]) and not gold.requires_grad


def test_the_signed_loss_is_minus_r_w_log_p(tmp_path: Path, folder: Path, data: Path) -> None:
    """Against a plain forward pass in float32."""
    recipe = recipe_of("signed", folder, data, rank=0, penalty=0.5)
    dialogue = tokens(recipe, judged(NAMES[0], "+?-"))
    [row] = signed.rows(recipe, [dialogue])
    assert [row["rewards"][start] for start, _ in dialogue.spans] == [1.0, 0.0, -0.5]
    model, reader = offline.load(recipe)
    runner = signed.trainer(recipe, model, reader, [row], tmp_path)
    loss = runner.compute_loss(model, runner.data_collator([row]))
    ids = torch.tensor([row["input_ids"]])
    logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    total, count = 0.0, 0
    for turn, reward in ((1, 1.0), (3, -0.5)):
        for place in range(*dialogue.spans[turn - 1]):
            logp = logps[place - 1, ids[0, place]].item()
            total -= reward * (1.0 if reward > 0 else min(1.0, max(0.01, math.exp(logp)))) * logp
            count += 1
    assert loss.item() == pytest.approx(total / count, rel=1e-4)


def test_a_line_that_is_short_recited_or_said_before_earns_nothing(folder: Path, data: Path) -> None:
    name = load_bank().persona(NAMES[0]).name
    lines = [
        "Yes I do.",
        f"Well, my Your name is {name} to you.",
        "I went out to buy some bread.",
        "I went out to buy some fish.",
    ]
    record = judged(NAMES[0], "+++-", 0, lines)

    def rewarded(**settings: Any) -> list[float]:
        recipe = recipe_of("signed", folder, data, **settings)
        dialogue = tokens(recipe, record)
        [row] = signed.rows(recipe, [dialogue])
        return [row["rewards"][start] if start < len(row["rewards"]) else 0.0 for start, _ in dialogue.spans]

    assert rewarded() == [1, 1, 1, -1]
    assert rewarded(shortest=4) == [0, 1, 1, -1]
    assert rewarded(echoed=0.2) == [1, 0, 1, -1]  # a contradiction costs however it is said
    again = judged(NAMES[0], "++", 0, lines[2:])
    recipe = recipe_of("signed", folder, data, echoed=0.5)
    assert signed.earning(recipe, again.transcript) == [True, False]


def test_a_token_tree_holds_what_rows_begin_with_once() -> None:
    tree = token_tree([[7, 8, 9], [7, 8, 5, 9], [7, 8], [8]])
    assert tree.ids.tolist() == [7, 8, 9, 5, 9, 8]
    assert tree.positions.tolist() == [0, 1, 2, 2, 3, 0]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 2], [0, 1, 3, 4], [0, 1], [5]]
    seen = [row.nonzero()[:, 0].tolist() for row in tree.seen]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5]]


def test_a_token_tree_gives_the_log_probabilities_and_gradients_of_whole_rows(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    """Those of TRL's own loss, on dialogues of two people of several lengths, and a branch of one of them."""
    parent = judged(NAMES[0], "+-+")
    records = [parent, judged(NAMES[0], "+-?+", 1), judged(NAMES[1], "++"), branched(parent, 0, 2, "+")]
    recipe = recipe_of("sft", folder, data, batch=4)
    made = sft.rows(recipe, [tokens(recipe, record) for record in records])
    model, reader = offline.load(recipe)
    model.float()
    runner = sft.trainer(recipe, model, reader, made, tmp_path)
    inputs = next(iter(runner.get_train_dataloader()))
    assert sorted(inputs["persona"]) == sorted([NAMES[0], NAMES[0], NAMES[0], NAMES[1]])
    found, places = runner.learned(runner.model, inputs)
    whole = runner.model(
        **{key: inputs[key] for key in ("input_ids", "attention_mask", "labels")}, use_cache=False, fused_lm_head=True
    ).log_probs
    assert torch.allclose(found, whole[places[:, 0], places[:, 1] - 1], atol=1e-4)
    assert len(found) == int((inputs["labels"] != IGNORED).sum())
    assert whole.sum().item() == pytest.approx(found.sum().item())
    weights = [weight for weight in runner.model.parameters() if weight.requires_grad]
    shared, plain = (torch.autograd.grad(logps.sum(), weights) for logps in (found, whole))
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(shared, plain, strict=True))
    assert max(float(one.abs().max()) for one in shared) > 0.1
    runner.model.gradient_checkpointing_enable()
    runner.model.train()
    twice = torch.autograd.grad(runner.learned(runner.model, inputs)[0].sum(), weights)
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(twice, plain, strict=True))


def test_a_verdict_the_judge_doubts_and_the_worst_of_several(folder: Path, data: Path) -> None:
    record = judged(NAMES[0], "++-")  # p_contradicts .2, .2, .9
    record.verdicts += [
        v.model_copy(update={"metric": "line_to_line", "outcome": o, "p_contradicts": None})
        for v, o in zip(record.verdicts[1:], ("contradicts", "consistent"), strict=True)
    ]
    assert tokens(recipe_of("sft", folder, data, certain=0.85), record).outcomes == [
        "unparsed",
        "unparsed",
        "contradicts",
    ]
    both = tokens(recipe_of("sft", folder, data, label_by=["prompt_to_line", "line_to_line"]), record)
    assert both.outcomes == ["consistent", "contradicts", "contradicts"]
    assert both.scores == pytest.approx([0.8, 0.0, 0.1])


# Training


def logp_of(folder: Path, out: Path | None, made: list[tuple[list[int], list[int]]]) -> float:
    """Sum of log p of completions after their prompts."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if out is not None:
        model = PeftModel.from_pretrained(model, str(out / "adapter"))
    total = 0.0
    for prompt, line in made:
        logps = model(input_ids=torch.tensor([prompt + line])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total += float(logps[range(len(line)), line].sum())
    return total


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("method", METHODS)
def test_training_raises_consistent_lines_above_contradicting_ones(
    tmp_path: Path, folder: Path, data: Path, method: str
) -> None:
    recipe = recipe_of(method, folder, data, epochs=3 if method == "dpo" else 1)
    log = train(method, recipe, tmp_path / "run")
    assert all(math.isfinite(entry["loss"]) for entry in log if "loss" in entry)
    dialogues = [tokens(recipe, record) for record in read_jsonl(data)]
    lines: dict[str, list[tuple[list[int], list[int]]]] = {"consistent": [], "contradicts": [], "unparsed": []}
    for dialogue in dialogues:
        for turn in dialogue.own_turns:
            lines[dialogue.outcomes[turn - 1]].append((dialogue.prompt(turn), dialogue.line(turn)))
    gain = {
        kind: (logp_of(folder, tmp_path / "run", made) - logp_of(folder, None, made)) / len(made)
        for kind, made in lines.items()
        if made
    }
    assert gain["consistent"] > gain["contradicts"] + 0.1, gain
    assert not [file for file in (tmp_path / "run" / "adapter").iterdir() if file.suffix in (".bin", ".pt", ".pth")]
    Engine.load(str(tmp_path / "run" / "adapter"))


# four steps of each
SIZES: dict[str, Any] = {
    "sft": {"limit": 4},
    "kto": {"limit": 8},
    "dpo": {"epochs": 2},
    "signed": {"limit": 4},
}


class Stopped(Exception):
    pass


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            raise Stopped


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("method", "rank"), [("sft", 4), ("kto", 4), ("dpo", 4), ("signed", 4), ("kto", 0)])
def test_an_interrupted_run_resumes_to_the_same_weights(
    tmp_path: Path, folder: Path, data: Path, method: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(method, folder, data, rank=rank, save_every=2, **SIZES[method])
    whole = train(method, recipe, tmp_path / "whole")
    made = METHODS[method].trainer

    def stopping(*arguments: Any) -> Any:
        runner = made(*arguments)
        runner.add_callback(Stop())
        return runner

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(METHODS[method], "trainer", stopping)
        train(method, recipe, tmp_path / "parts")
    parts = train(method, recipe, tmp_path / "parts", resume=True)
    timing = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}
    assert [{k: v for k, v in e.items() if k not in timing} for e in parts] == [
        {k: v for k, v in e.items() if k not in timing} for e in whole
    ]
    assert [entry["step"] for entry in parts[:-1]] == list(range(1, len(parts)))
    name = "adapter/adapter_model.safetensors" if rank else "model/model.safetensors"
    files = [load_file(tmp_path / run / name) for run in ("whole", "parts")]
    assert files[0] and all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    if not rank:
        start = load_file(folder / "model.safetensors")
        assert not torch.equal(
            start["model.layers.0.mlp.up_proj.weight"].bfloat16(), files[0]["model.layers.0.mlp.up_proj.weight"]
        )
        AutoTokenizer.from_pretrained(tmp_path / "whole" / "model")


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("method", ["sft", "kto", "dpo", "signed"])
def test_an_adapter_is_trained_further_and_held_on_to(tmp_path: Path, folder: Path, data: Path, method: str) -> None:
    train("sft", recipe_of("sft", folder, data), tmp_path / "begin")
    begin = tmp_path / "begin" / "adapter"
    further = recipe_of(method, folder, data, start=str(begin), **SIZES[method])
    log = train(method, further, tmp_path / "run")
    if method in ("dpo", "kto"):  # measured from where it began, nothing has moved yet; from the base, much has
        assert log[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5)
        assert abs(log[-2]["rewards/chosen"]) > 1e-4
    first, last = (load_file(path / "adapter_model.safetensors") for path in (begin, tmp_path / "run" / "adapter"))
    assert first.keys() == last.keys() and not all(torch.equal(first[name], last[name]) for name in first)
    assert PeftConfig.from_pretrained(str(tmp_path / "run" / "adapter")).r == 4


def test_only_an_adapter_is_trained_further(tmp_path: Path, folder: Path, data: Path) -> None:
    with pytest.raises(RecipeError, match=r"start: .* holds no adapter"):
        train("signed", recipe_of("signed", folder, data, start=str(folder)), tmp_path / "run")
    with pytest.raises(RecipeError, match="rank=0"):
        train("signed", recipe_of("signed", folder, data, start=str(folder), rank=0), tmp_path / "run")


@pytest.mark.usefixtures("brief")
def test_a_small_step_is_not_rounded_away(
    tmp_path: Path, folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are trained are float32, also on a base in bfloat16."""
    monkeypatch.setattr("persona_tasks.embedded.weights.fitting_dtype", lambda _: "bfloat16")
    for rank in (4, 0):
        recipe = recipe_of("sft", folder, data, rank=rank, learning_rate=1e-6, limit=2)
        model, reader = offline.load(recipe)
        row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "persona": NAMES[0]}
        runner = sft.trainer(recipe, model, reader, [row] * 4, tmp_path)
        trained = {name: p for name, p in runner.model.named_parameters() if p.requires_grad}
        assert {p.dtype for p in trained.values()} == {torch.float32}
        before = {name: p.detach().clone() for name, p in trained.items()}
        runner.train()
        moved = [name for name, p in trained.items() if not torch.equal(p, before[name])]
        assert any("lora_B" in name or rank == 0 for name in moved)


# Bad input


def refused(tmp_path: Path, recipe: Any, match: str, method: str = "sft") -> None:
    with pytest.raises(RecipeError, match=match):
        train(method, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing has begun


def test_data_that_cannot_be_learned_from_is_refused(tmp_path: Path, folder: Path) -> None:
    def file(*records: Judged) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.touch()
        append_jsonl(path, records)
        return path

    good = judged(NAMES[0], "+-")
    bare = good.model_copy(update={"verdicts": [], "judge": ""})
    other = judged(NAMES[0], "+")
    other.transcript.persona_text += " And a liar."
    dev, test = (judged(load_bank().select("all", split)[0].id, "+") for split in ("dev", "test"))
    cases: list[tuple[Path, str, str]] = [
        (tmp_path / "none.jsonl", "there is no file", "sft"),
        (file(), "there is no dialogue", "sft"),
        (file(bare), "no line has a verdict", "sft"),
        (file(judged(NAMES[0], "??")), "all 2 verdicts by prompt_to_line are unparsed", "sft"),
        (file(good, test), "of the test split", "sft"),
        (file(good, dev), "of the dev split", "sft"),
        (file(good, good), "occurs twice", "sft"),
        (file(other), "another version of its persona", "sft"),
        (file(judged(NAMES[0], "--")), "no line of the data is consistent", "sft"),
        (file(judged(NAMES[0], "--")), "lines of one kind", "kto"),
        (file(good), "no pair in the data: 0 segments", "dpo"),
    ]
    for path, match, method in cases:
        refused(tmp_path, recipe_of(method, folder, path), match, method)
    forced = recipe_of("sft", folder, file(test), any_split=True)
    assert [r.transcript.id for r in offline.read_dialogues(forced)] == [test.transcript.id]
    broken = file(good)
    broken.write_text(broken.read_text() + "{}\n" + broken.read_text())
    with pytest.raises(TranscriptError, match=rf"{broken.name}, line 2: transcript"):
        train("sft", recipe_of("sft", folder, broken), tmp_path / "out")


def test_a_dialogue_longer_than_the_context_is_refused(tmp_path: Path, data: Path) -> None:
    short = model_folder(tmp_path, max_position_embeddings=256)
    refused(tmp_path, recipe_of("sft", short, data), r"tokens, more than the model's context 256")


def test_a_template_that_rewrites_history_is_refused(folder: Path, data: Path) -> None:
    forgetful = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'][:3] }}")
    with pytest.raises(RecipeError, match="not prefix-preserving"):
        tokens(recipe_of("sft", folder, data), judged(NAMES[0], "++"), forgetful)


@pytest.mark.usefixtures("brief")
def test_runs_are_not_mixed(tmp_path: Path, folder: Path, data: Path) -> None:
    recipe = recipe_of("sft", folder, data, limit=1)
    with pytest.raises(RecipeError, match="no checkpoint to resume"):
        train("sft", recipe, tmp_path / "run", resume=True)
    train("sft", recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match="holds a run already"):
        train("sft", recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"other settings than .* began with: epochs, seed"):
        train("sft", recipe_of("sft", folder, data, limit=1, seed=1, epochs=2), tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["sft", "kto", "dpo_line", "dpo_segment", "signed"])
def test_recipes_are_valid_and_unknown_keys_are_not(name: str) -> None:
    file = Path(__file__).parents[1] / "training" / "recipes" / f"{name}.yaml"
    recipe = load_recipe(METHODS[name.split("_")[0]].Recipe, file)
    assert recipe.base == "smollm2-135m" and recipe.data
    with pytest.raises(RecipeError, match="learning_rat: Extra inputs"):
        load_recipe(METHODS[name.split("_")[0]].Recipe, file, ["learning_rat=1"])
