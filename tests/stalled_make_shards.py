"""make_shards with store://data, the folder of the list: python -m tests.stalled_make_shards LIST ARGUMENTS...

Its stalled.mp4 does not answer while there is a file `stall` beside it. The workers import this file, too.
"""

import sys
import threading
from pathlib import Path

from i2v.pipelines import store
from i2v.shard_tools import make_shards
from tests.stores import Store

FOLDER, ask = Path(sys.argv[1]).parent, store.Store._ask


def impatient(self, what, name, call, times=1):
    return ask(self, what, name, call, 1e-3 if stalls and self.url.endswith("stalled.mp4") else times)


def answer(name, data):
    return threading.Event().wait() if stalls and name == "stalled.mp4" else data


stalls = (FOLDER / "stall").exists()
store.Store._ask, store.RETRY = impatient, store.Retry(tries=2, wait=0.0)
Store.reset()
Store.put(FOLDER, "data")
Store.answer = staticmethod(answer)

if __name__ == "__main__":
    sys.exit(make_shards.main())
