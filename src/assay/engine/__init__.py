"""Models, their gradients, sampling and checkpoints: the only place that knows devices."""
