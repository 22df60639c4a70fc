"""Training of networks, plain and differentiable: networks, augmentation, the inner loop, evaluation."""

import os
import warnings
from tempfile import TemporaryDirectory

# Torch makes the folder of its compiled code when its compiler is loaded, which every optimizer does: without the folder
# not even uncompiled training begins.
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_folder = os.environ.get(_VARIABLE)
if _folder:
    try:
        os.makedirs(_folder, exist_ok=True)
        if not os.access(_folder, os.W_OK):
            raise OSError(f"{_folder!r} cannot be written to")
    except OSError as error:
        _TEMPORARY = TemporaryDirectory(prefix="seqmatch-compiled-")  # lives as long as this process
        os.environ[_VARIABLE] = _TEMPORARY.name
        warnings.warn(
            f"compiled code is not kept for the next run ({error}); set {_VARIABLE} to a folder that can be written to",
            stacklevel=2,
        )
