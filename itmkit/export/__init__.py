"""A matcher as ONNX files, which are kept only where they give what the matcher gives."""

from itmkit.export.export import CERTIFICATE, export_onnx, require_onnx

__all__ = ["CERTIFICATE", "export_onnx", "require_onnx"]
