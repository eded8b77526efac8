"""What one of several processes may do: fail, warn, wait for ever, or tell where it differs from others.

python -m tests.distributed.launched fail|warn|wait|PATH
"""

from __future__ import annotations

import os
import random
import sys
import time
import warnings
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    match sys.argv[1]:
        case "fail":
            raise ValueError("no world of this name")
        case "warn":
            warnings.warn_explicit("careful", UserWarning, "", 0, module="lightning_tricks.lifecycle.notice")
        case "wait":
            time.sleep(60)
        case path:
            drawn = f"{random.random()} {np.random.rand()}"
            Path(path + os.environ["RANK"]).write_text(f"{hash('the order of sets')} {drawn}")
