"""What qft refuses by design: (ways, model types, text of the refusal, why). Patterns match whole names."""

REFUSALS = []
