"""The child of a `Guard` without the libraries that prepare series, whose import is nearly all of its start."""

import sys
from multiprocessing.connection import Connection
from types import ModuleType

from aneurysm_ray.data import guard

if __name__ == "__main__":
    sys.modules["aneurysm_ray.data.work"] = ModuleType("nothing")
    guard._serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
