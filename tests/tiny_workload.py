"""Two small models on two small street cameras: a workload that trains and merges in seconds. Its SLO is one that a
machine keeps which runs other tests besides."""

TINY_WORKLOAD = """
name: tiny
defaults: {accuracy_target: 0.7, fps: 10, slo_ms: 2000}
feeds:
  a: {kind: streets, seed: 0, frames: 300}
  b: {kind: streets, seed: 1, frames: 300}
queries:
  - name: a_cars
    feed: a
    model: &model
      architecture: squeezenet1_1
      classes: [background, vehicle]
      input_size: 32
      weights: originals/a_cars.safetensors
  - {name: b_cars, feed: b, model: {<<: *model, weights: originals/b_cars.safetensors}}
"""
