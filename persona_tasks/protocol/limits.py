"""How many tokens each kind of answer may take. The same in every harness, so that their dialogues are the same."""

LINE_TOKENS = 128
PROBE_TOKENS = 48
REPLY_TOKENS = 128
VERDICT_TOKENS = 256
