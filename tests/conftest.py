"""What holds for every test: no network, one thread for each test worker, and a calm collector.

Processes that tests start choose their own number of threads.
"""

import gc
import logging
import os
from unittest.mock import patch

# Read when the libraries are loaded. Where a test asks for rows that are on the hub, its client
# would try again for a minute and more; and two threads on tensors of a few numbers wait for each
# other longer than they compute.
os.environ["HF_HUB_OFFLINE"] = "1"
_ONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

with patch.dict(os.environ, _ONE):
    import torch

torch.set_num_threads(1)  # a plugin of pytest may have loaded it before

# Most of what a test worker holds are modules, which are never garbage: to look for garbage among
# them again and again was a tenth of its time.
gc.set_threshold(50_000, 20, 100)


def pytest_collection_finish() -> None:
    gc.freeze()
    # pytest listens to every logger that keeps its messages to itself, six times in each test, and
    # torch has fifty of them: a tenth of the time again. One that passes them on is heard as well.
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True
