"""Per-example clipping for Keras models on TensorFlow."""
