"""Sample laws: what more answers to one question are worth, and when to stop."""
