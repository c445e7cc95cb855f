"""The exported files of `exported_files.py` as fixtures."""

from exported_files import onnx_file, pt2_file, world  # noqa: F401
