"""Merges by mergekit, in whose environment alone this runs: ``python mergekit_run.py FOLDER``.

``FOLDER/configs.json`` holds a configuration of ``mergekit-pytorch`` by the name of each folder to write.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    from mergekit.scripts.merge_raw_pytorch import main  # here, because tests import this file, too

    folder = Path(sys.argv[1])
    for name, config in json.loads((folder / "configs.json").read_text()).items():
        (folder / "config.yml").write_text(json.dumps(config))  # which is YAML, too
        main([str(folder / "config.yml"), str(folder / name), "--quiet"], standalone_mode=False)
    print(version("mergekit"))
