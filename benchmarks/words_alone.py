"""How much of the labelled sets the words alone tell: a bag of words that never sees the persona, on dev personas.

python benchmarks/words_alone.py

What a judge must beat. AUC of "contradicts" on lines, half a minute; see docs/calibration.md.
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from persona_tasks.calibration import CONTRAST, REWRITTEN, Item, load_items

TRAINED_ON = {
    "on-policy lines": ["on_policy"],
    "composed lines": ["calibration"],
    "composed and on-policy lines": ["calibration", "on_policy"],
    "contrast pairs": [CONTRAST],
    "rewritten lines": [REWRITTEN],
    "all four": ["calibration", "on_policy", CONTRAST, REWRITTEN],
}


def bag_of_words() -> Pipeline:
    """Words, word pairs and groups of two to four letters, weighted by rarity; logistic regression."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=3, sublinear_tf=True)
    return make_pipeline(make_union(words, letters), LogisticRegression(max_iter=2000, class_weight="balanced"))


def lines_of(items: list[Item]) -> list[str]:
    """What was said, and nothing else."""
    return [item.transcript.lines[-1] for item in items]


def labels_of(items: list[Item]) -> np.ndarray:
    """``[items]``, whether each contradicts."""
    return np.array([item.label == "contradicts" for item in items])


def main() -> None:
    """Train on each choice of sets, and print what it gives."""
    table = Table("trained on", "on-policy lines", "composed lines", title="AUC of words alone, dev personas")
    dev = {name: load_items([name], "dev", metric="prompt_to_line") for name in ("on_policy", "calibration")}
    for title, sets in TRAINED_ON.items():
        items = load_items(sets, "train", metric="prompt_to_line")
        model = bag_of_words().fit(lines_of(items), labels_of(items))
        found = [roc_auc_score(labels_of(d), model.decision_function(lines_of(d))) for d in dev.values()]
        table.add_row(title, *(f"{auc:.2f}" for auc in found))
    pairs = load_items([CONTRAST], "train", metric="prompt_to_line")
    groups = [item.cluster for item in pairs]
    told = cross_val_predict(
        bag_of_words(), lines_of(pairs), labels_of(pairs), groups=groups, cv=GroupKFold(8), method="decision_function"
    )
    console = Console()
    console.print(table)
    console.print(f"contrast pairs, from those of other personas: {roc_auc_score(labels_of(pairs), told):.2f}")


if __name__ == "__main__":
    main()
