"""Players: networks that minimise one loss, their optimizers and their parallel strategies."""
