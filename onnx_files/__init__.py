"""Export the network to an ONNX file, and run exported files without torch."""
