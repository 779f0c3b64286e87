"""Start a fabric whose public node is in another namespace: `python starting.py CONFIG OWNER_PID PLACES`, run inside.

`PLACES` is JSON: by zone, the address and the words that launch its node. The cluster ends with its owner.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fabric.config import Environment, load_config
from fabric.local_cluster import Place
from fabric.local_fabric import start_local

if __name__ == "__main__":
    raw = json.loads(sys.argv[3])
    start_local(
        load_config(Path(sys.argv[1])),
        Environment.read(),
        progress=print,
        tied_to_pid=int(sys.argv[2]),
        places={zone: Place(address=address, launcher=tuple(launcher)) for zone, (address, launcher) in raw.items()},
    )
