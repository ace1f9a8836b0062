"""The edge box: one scheduler, the device it drives, the simulated device. Pure; no torch."""
