"""lm-eval before 0.4.12 finds `!function` only in files beside the YAML; the code is in the package persona_tasks."""

from persona_tasks.lm_eval_tasks.task import PersonaDrift, PersonaQA, process_results

__all__ = ["PersonaDrift", "PersonaQA", "process_results"]
