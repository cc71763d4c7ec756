"""Trained models as files: safetensors, ONNX, published checkpoints, and the model card beside them."""
