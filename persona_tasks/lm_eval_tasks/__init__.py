"""Tasks for lm-evaluation-harness: `lm_eval --tasks persona_drift` and `lm_eval --tasks persona_qa`.

The folder `persona_drift` beside this file is what the harness finds (YAML and a README). The code is here:

    task.py      `persona_drift`: documents in, one request per dialogue, metrics out
    qa.py        `persona_qa`: questions by log-likelihood, no dialogue and no judge
    rollout.py   the new request type: turn t of all dialogues is one call of `generate_until`
    render.py    messages to whatever the evaluated model takes
    roles.py     judge and partner: an endpoint, a local model, or the embedded one
    scores.py    judging a batch of dialogues; one dialogue's verdicts to lm-eval's metrics
    samples.py   judging later what `--predict_only` has saved
    command.py   `persona-tasks lm-eval ...`
"""

from pathlib import Path

TASKS = Path(__file__).parent
"""What `--include_path` has to be where the tasks are not installed beside lm-eval's own."""
