"""Optimizers and learning-rate schedules that torch.optim lacks."""
