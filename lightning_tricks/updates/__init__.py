"""How a gradient becomes a step: learning rates, and what else decides the size of an update."""
