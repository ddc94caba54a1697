"""Without triton its tests cannot be imported; pytest's first lines say that it is missing."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["aot.py", "test_triton.py", "test_triton_compiled.py"]
