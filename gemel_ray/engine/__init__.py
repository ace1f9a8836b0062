"""The real device: weights in and out of memory under a budget, inference, profiling."""
