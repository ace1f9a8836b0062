"""A publishing process for test_interruptions: publisher.py STORE COUNT SALT [SYNCS]

With SYNCS it is killed right after that many files and folders were synced to disk, 0 meaning in the middle of its
first write. One publishing syncs six times: the blob and its folder, the manifest and its folder, HEAD and its folder.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from weights_kit import publish

from gemel_ray.weights.store import open_store


def die_after(syncs):
    done = 0
    really_sync = os.fsync

    def sync(descriptor):
        nonlocal done
        if syncs == 0:
            os.ftruncate(descriptor, 3)
        else:
            really_sync(descriptor)
        done += 1
        if done >= syncs:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = sync


if __name__ == "__main__":
    path, count, salt, *syncs = sys.argv[1:]
    if syncs:
        die_after(int(syncs[0]))
    for number in range(int(count)):
        publish(open_store(path, create=True), f"{salt} {number}".encode())
