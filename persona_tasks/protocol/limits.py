"""How many tokens each kind of answer may take. The same in every harness, so that their dialogues are the same."""

LINE_TOKENS = 96
PROBE_TOKENS = 32
REPLY_TOKENS = 96
VERDICT_TOKENS = 1024
