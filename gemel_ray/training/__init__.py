"""Joint retraining of models that share weights."""
