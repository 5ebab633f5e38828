"""The reference trainer: data order, optimizers, schedule, loop, calibration."""
