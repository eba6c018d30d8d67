"""Tuning methods behind one interface (`base.TunableModel`): LoRA and variants, soft prompts, full tuning.

Each prepares a model, names its trained parameters and saves them as a PEFT folder. The loop is in `tuner.training`.
"""
