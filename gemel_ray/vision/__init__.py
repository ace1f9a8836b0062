"""Models and their layers, shared weights, feeds, tasks and metrics. torch and torchvision live here and above."""
