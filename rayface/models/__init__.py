"""Model files: safetensors, ONNX, published checkpoints, and model cards."""
