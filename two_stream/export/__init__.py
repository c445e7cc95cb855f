"""Networks that leave Python: ONNX, torch.export and AOTInductor files, verified against the model they came from."""
